"""Save a checkpoint so that a folder with its final name is always complete.

.tmp-step_00000500-<pid>/   shards/ (DeepSpeed's files)   hf/ (config, tokenizer)
    -> every file fsynced -> manifest.json -> rename to step_00000500 -> latest -> rotation
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bigft.checkpoint.files import sync
from bigft.checkpoint.manifest import (
    LATEST_NAME,
    find_committed,
    write_durably,
    write_manifest,
)
from bigft.checkpoint.swapped import swapped_state_mapped
from bigft.distributed.collectives import barrier, broadcast_object, raise_first
from bigft.errors import BigftError, CheckpointError

logger = logging.getLogger(__name__)

SHARDS = "shards"
ASSETS = "hf"
_UNFINISHED = ".tmp-"


def save_checkpoint(
    engine: Any,
    checkpoints: Path,
    *,
    step: int,
    facts: dict[str, Any],
    write_assets: Callable[[Path], None],
    keep_last: int,
    is_rank_zero: bool,
) -> Path:
    """Write, commit and rotate. The rename is the commit: before it nothing counts.

    Args:
        engine: The DeepSpeed engine.
        checkpoints: The run's `checkpoints/` folder.
        step: Optimizer steps done.
        facts: Kept in the manifest.
        write_assets: Writes config and tokenizer into a folder; called on rank 0.
        keep_last: Committed checkpoints to leave.
        is_rank_zero: Whether this rank commits.

    Returns:
        The committed folder `step_XXXXXXXX`.

    Raises:
        CheckpointError: The files could not be written; older checkpoints are untouched.

    Collective: every rank.
    """
    final = checkpoints / f"step_{step:08d}"
    partial = Path(broadcast_object(str(checkpoints / f"{_UNFINISHED}{final.name}-{os.getpid()}")))
    try:
        error = _attempt(lambda: _start(partial) if is_rank_zero else None, partial)
        raise_first(error)
        error = _attempt(lambda: _write_shards(engine, partial), partial)
        raise_first(error)
        error = _attempt(
            lambda: _commit(partial, final, facts, write_assets) if is_rank_zero else None, partial
        )
        raise_first(error)
    except BigftError:
        if is_rank_zero:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if is_rank_zero:
        _rotate(final, keep_last)
    barrier()
    return final


def _attempt(work: Callable[[], object], folder: Path) -> BigftError | None:
    try:
        work()
    except BigftError as error:
        return error
    except (OSError, RuntimeError) as error:
        # torch.save reports a full disk as a RuntimeError of its zip writer.
        return CheckpointError(
            f"{folder}: the checkpoint could not be written ({error}); free space or choose another"
            " --output_dir. Older checkpoints are untouched"
        )
    return None


def _start(partial: Path) -> None:
    for leftover in partial.parent.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    (partial / SHARDS).mkdir(parents=True)


def _write_shards(engine: Any, partial: Path) -> None:
    with contextlib.ExitStack() as stack:
        error = _attempt(lambda: stack.enter_context(swapped_state_mapped(engine)), partial)
        raise_first(error)
        with _raised_afterwards(engine.checkpoint_engine):
            engine.save_checkpoint(str(partial), tag=SHARDS, save_latest=False)


@contextlib.contextmanager
def _raised_afterwards(writer: Any) -> Iterator[None]:
    """Raise a failure of DeepSpeed's file writer at the end of the block.

    `save_checkpoint` ends with a barrier: a rank that left it early, because its disk is full,
    would meet the others in another collective (gloo aborts, NCCL waits for ever).
    """
    errors: list[Exception] = []
    write = writer.save

    def save(*args: Any, **kwargs: Any) -> Any:
        try:
            return write(*args, **kwargs)
        except (OSError, RuntimeError) as error:
            errors.append(error)

    writer.save = save
    try:
        yield
    finally:
        del writer.save
    if errors:
        raise errors[0]


def _commit(
    partial: Path, final: Path, facts: dict[str, Any], write_assets: Callable[[Path], None]
) -> None:
    # DeepSpeed leaves copies of its converters here; `bigft consolidate` does their work.
    for script in ("zero_to_fp32.py", "zero_to_torch.py"):
        (partial / script).unlink(missing_ok=True)
    write_assets(partial / ASSETS)
    write_manifest(partial, facts)
    sync(partial)
    if final.exists():
        # A run that resumed from an older checkpoint arrives here again: the newer state wins.
        _remove(final)
    partial.rename(final)
    sync(final.parent)
    write_durably(final.parent / LATEST_NAME, final.name + "\n")


def _rotate(newest: Path, keep_last: int) -> None:
    committed = find_committed(newest.parent)
    now = committed.index(newest) + 1
    # Later steps are of a course that this run has left (--resume never or an older checkpoint):
    # they go first.
    for old in [*committed[now:], *committed[:now]][:-keep_last]:
        with contextlib.suppress(OSError):
            _remove(old)
            logger.info("rotated out %s", old.name)


def _remove(committed: Path) -> None:
    # Renamed first: a folder with a checkpoint's name is never half deleted.
    trash = committed.with_name(f"{_UNFINISHED}trash-{committed.name}")
    committed.rename(trash)
    shutil.rmtree(trash)

"""Save a checkpoint so that a folder with its final name is always complete.

.tmp-step_00000500-<pid>/   shards/ (DeepSpeed's files)   hf/ (config, tokenizer)
    -> every file fsynced -> manifest.json -> rename to step_00000500 -> latest -> rotation
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigft.checkpoint.manifest import find_committed, sync, write_durably, write_manifest
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
        _rotate(checkpoints, keep_last)
    barrier()
    return final


def _attempt(work: Callable[[], None], folder: Path) -> BigftError | None:
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
    with swapped_state_mapped(engine):
        engine.save_checkpoint(str(partial), tag=SHARDS, save_latest=False)


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
        shutil.rmtree(final)
    partial.rename(final)
    sync(final.parent)
    write_durably(final.parent / "latest", final.name + "\n")


def _rotate(checkpoints: Path, keep_last: int) -> None:
    for old in find_committed(checkpoints)[:-keep_last]:
        # Renamed first: a folder with a checkpoint's name is never half deleted.
        trash = old.with_name(f"{_UNFINISHED}trash-{old.name}")
        with contextlib.suppress(OSError):
            old.rename(trash)
            shutil.rmtree(trash)
            logger.info("rotated out %s", old.name)

"""Commit a checkpoint: all ranks write, all agree, and one rename makes it count.

    rank 0    lock, clear up after crashes, mkdir .tmp-step_00000500-<id>    -> "begin"
    all       write, hash and fsync their files; fsync the folders           -> "part-<rank>"
    rank 0    manifest.json, fsync, rename to step_00000500, fsync; latest   -> "outcome"; rotation

Before the rename nothing counts, after it everything does. A process can be killed between any two
of these calls: what it leaves is either complete under its final name, or has a name that nobody
reads and that the next start removes. See docs/decisions/0010-commit-protocol.md.
"""

import contextlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bigft.checkpoint.agree import Board, Ranks, join_problems, shared_error
from bigft.checkpoint.files import FileRecord, Files, sync
from bigft.checkpoint.folder import (
    clear_debris,
    final_place,
    make_durably,
    partial_place,
    point_best,
    point_latest,
    publish,
    remove,
    rotate,
)
from bigft.checkpoint.manifest import MANIFEST_NAME, check_files, format_manifest, next_sequence
from bigft.distributed.claim import claimed
from bigft.errors import BigftError, CheckpointError
from bigft.units import format_bytes

_SAVE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def write_checkpoint(  # noqa: PLR0913 (what, where and with whom)
    checkpoints: Path,
    *,
    step: int,
    facts: dict[str, Any],
    write: Callable[[Files], None],
    rank: int,
    world_size: int,
    board: Board,
    timeout_seconds: float,
    keep_last: int,
    protected: Path | None,
    save_id: str,
    best: Path | None = None,
) -> Path:
    """Write, commit and rotate; when this returns the checkpoint survives a power cut.

    May run in a background thread: it uses `board` and no collective. One save at a time per
    folder.

    Args:
        checkpoints: The run's `checkpoints/`, on storage that all ranks share.
        step: Optimizer steps done. A checkpoint of the same step is replaced.
        facts: Plain values for the manifest; those of rank 0 count.
        write: Writes this rank's files.
        rank: Place of this process among those that write.
        world_size: Their number.
        board: Carries messages between them; keys are prefixed with `save_id`.
        timeout_seconds: How long to wait for the other ranks once the own files are written.
        keep_last: Newest checkpoints that rotation leaves, counting those alone that verify.
        protected: A checkpoint that rotation never takes: the one this run resumed from.
        save_id: Letters, digits and `._-`; the same on every rank, another one for every save.
        best: The run's best checkpoint, which may be this one: rotation leaves it, and `best`
            names it.

    Returns:
        The committed folder `step_XXXXXXXX`.

    Raises:
        CheckpointError: The save failed, on all ranks with the same words; older checkpoints are
            untouched.

    Collective: every rank, through `board`.
    """
    if not _SAVE_ID.fullmatch(save_id):
        raise ValueError(f"save_id {save_id!r}: up to 64 letters, digits, dots, _ and -")
    save = _Save(
        Ranks(rank, world_size, board, timeout_seconds, save_id),
        checkpoints,
        final_place(checkpoints, step),
        partial_place(checkpoints, step, save_id),
        write,
    )
    if rank != 0:
        return _follow(save)
    with contextlib.ExitStack() as held:
        replaced = _lead(save, held, {**facts, "step": step})
        # Nothing from here on can fail the save: it is committed, and the others know.
        remove(replaced)
        if best is not None and best.parent == checkpoints:
            point_best(best)
        rotate(checkpoints, keep_last, protected, best)
    return save.final


@dataclass(frozen=True)
class _Save:
    """One save, seen from one rank."""

    ranks: Ranks
    checkpoints: Path
    final: Path
    partial: Path
    write: Callable[[Files], None]

    def explain(self, problems: list[str]) -> str:
        """Put the problems of some ranks into the words that every rank raises."""
        return (
            f"{self.final}: the checkpoint was not saved ({join_problems(problems)})."
            " Older checkpoints are untouched"
        )


@dataclass
class _Part:
    """What one rank has to say after it wrote its files."""

    records: list[FileRecord] = field(default_factory=list)
    problem: str = ""
    bug: BaseException | None = None

    def to_text(self) -> str:
        files = [asdict(entry) for entry in self.records]
        return json.dumps({"problem": self.problem, "files": files})

    @classmethod
    def from_text(cls, text: str) -> "_Part":
        found = json.loads(text)
        return cls([FileRecord(**entry) for entry in found["files"]], found["problem"])


def _lead(save: _Save, held: contextlib.ExitStack, facts: dict[str, Any]) -> Path | None:
    """Do rank 0's part up to the outcome; return where the checkpoint is that was replaced."""
    stage = "begin"
    try:
        make_durably(save.checkpoints)
        held.enter_context(claimed(save.checkpoints))
        clear_debris(save.checkpoints)
        save.partial.mkdir()
        stage = "outcome"
        replaced = _write_and_publish(save, facts)
    except BaseException as error:
        is_told = isinstance(error, CheckpointError) and error.is_shared
        told = error if is_told else shared_error(save.explain([_explain(error, save)]))
        with contextlib.suppress(BigftError):
            save.ranks.tell(stage, str(told))
        # A bug keeps its own traceback; what a user can repair is one error on all ranks.
        if isinstance(error, OSError | BigftError):
            raise told from error
        raise
    save.ranks.tell(stage, "")
    return replaced


def _follow(save: _Save) -> Path:
    try:
        problem = save.ranks.hear("begin")
        if not problem:
            part = _write_part(save)
            save.ranks.report("part", part.to_text())
            if part.bug:
                raise part.bug
            # Rank 0 itself waits so long for the slowest rank.
            problem = save.ranks.hear("outcome", patience=2)
    except CheckpointError as error:
        silence = CheckpointError(save.explain([str(error)]))
        silence.is_local = True
        raise silence from error
    if problem:
        raise shared_error(problem)
    return save.final


def _write_part(save: _Save) -> _Part:
    """Write this rank's files. The others wait for its report: it never raises."""
    files = Files(save.partial)
    try:
        if not save.partial.is_dir():
            raise CheckpointError(
                f"{save.partial} was made by rank 0 and is not there on this host; give an"
                " --output_dir that all hosts share"
            )
        save.write(files)
        files.sync_folders()
    except (OSError, BigftError) as error:
        return _Part(problem=_explain(error, save))
    except BaseException as error:  # noqa: BLE001 (raised again once the others know)
        return _Part(problem=_explain(error, save), bug=error)
    return _Part(files.records)


def _write_and_publish(save: _Save, facts: dict[str, Any]) -> Path | None:
    """Go from an empty folder to a committed one; return where the one it replaced is."""
    try:
        save.ranks.tell("begin", "")
        records = _agree(save, _write_part(save))
        _seal(save, facts, records)
        replaced = publish(save.partial, save.final)
    except BaseException:
        remove(save.partial)
        raise
    # An error here leaves a complete checkpoint of which nobody can say that it survives a power
    # cut: the save counts as failed, and nothing is removed.
    sync(save.checkpoints)
    point_latest(save.final)
    return replaced


def _agree(save: _Save, mine: _Part) -> list[FileRecord]:
    """Collect the reports of all ranks: every file, or the error of all."""
    reports, problems = save.ranks.collect("part")
    if mine.bug:
        raise mine.bug
    parts = [mine, *map(_Part.from_text, reports)]
    problems += [part.problem for part in parts if part.problem]
    records = [entry for part in parts for entry in part.records]
    counts = Counter([MANIFEST_NAME, *(entry.path for entry in records)])
    problems += [f"{name} was written twice" for name, count in counts.items() if count > 1]
    if problems:
        raise shared_error(save.explain(problems))
    return records


def _seal(save: _Save, facts: dict[str, Any], records: list[FileRecord]) -> None:
    """Write the manifest, once rank 0 too sees every file."""
    check_files(save.partial, records)
    sequence = {"sequence": next_sequence(save.checkpoints)}
    with Files(save.partial).create(MANIFEST_NAME) as file:
        file.write(format_manifest({**facts, **sequence}, records).encode())
    sync(save.partial)


def _explain(error: BaseException, save: _Save) -> str:
    """Say what failed, on which rank and where, and how much space there is."""
    if isinstance(error, OSError):
        place = error.filename or save.checkpoints
        text = f"{place}: {error.strerror or error} (errno {error.errno}), {_free(save)}"
    elif isinstance(error, BigftError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    return f"rank {save.ranks.rank}: {text}"


def _free(save: _Save) -> str:
    try:
        parents = (save.checkpoints, *save.checkpoints.parents)
        folder = next(path for path in parents if path.exists())
        return f"{format_bytes(shutil.disk_usage(folder).free)} free there"
    except (OSError, StopIteration):
        return "free space unknown"

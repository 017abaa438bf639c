"""Commit a checkpoint: all ranks write, all agree, and one rename makes it count.

    rank 0    lock, clear up after crashes, mkdir .tmp-step_00000500-<id>    -> "begin"
    all       write, hash and fsync their files; fsync the folders           -> "part-<rank>"
    rank 0    manifest.json, fsync, rename to step_00000500, fsync; latest   -> "outcome"; rotation

Before the rename nothing counts, after it everything does. A process can be killed between any two
of these calls: what it leaves is either complete under its final name, or has a name that nobody
reads and that the next start removes. See docs/decisions/0010-commit-protocol.md. Where the ranks
do not share one storage, `commit_apart` does the same on each.
"""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigft.checkpoint.agree import Board, Ranks, shared_error
from bigft.checkpoint.commit_apart import commit_apart
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
from bigft.checkpoint.holdings import choose_obsolete
from bigft.checkpoint.manifest import MANIFEST_NAME, check_files, format_manifest, next_sequence
from bigft.checkpoint.pace import Written
from bigft.checkpoint.part import Part, Save, agree, explain, silence_explained, write_part
from bigft.checkpoint.storages import Storages
from bigft.distributed.claim import claimed
from bigft.errors import BigftError, CheckpointError

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
    storages: Storages | None = None,
    heard: Callable[[list[Written]], None] | None = None,
) -> Path:
    """Write, commit and rotate; when this returns the checkpoint survives a power cut.

    May run in a background thread: it uses `board` and no collective. One save at a time per
    folder.

    Args:
        checkpoints: The run's `checkpoints/`; the same path on every storage.
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
        storages: Which ranks share the storage of the folder; all of them by default.
        heard: Called on rank 0 with what all ranks have written, and in which time.

    Returns:
        The committed folder `step_XXXXXXXX`.

    Raises:
        CheckpointError: The save failed, on all ranks with the same words; older checkpoints are
            untouched.

    Collective: every rank, through `board`.
    """
    if not _SAVE_ID.fullmatch(save_id):
        raise ValueError(f"save_id {save_id!r}: up to 64 letters, digits, dots, _ and -")
    save = Save(
        Ranks(rank, world_size, board, timeout_seconds, save_id),
        checkpoints,
        final_place(checkpoints, step),
        partial_place(checkpoints, step, save_id),
        write,
        best if best is not None and best.parent == checkpoints else None,
        heard,
    )
    if storages is not None and storages.count > 1:
        kept = [one.name for one in (protected, best) if one and one.parent == checkpoints]
        commit_apart(
            save,
            storages,
            {**facts, "step": step},
            lambda surveys: choose_obsolete(surveys, keep_last, kept),
        )
        return save.final
    if rank != 0:
        return _follow(save)
    with contextlib.ExitStack() as held:
        replaced = _lead(save, held, {**facts, "step": step})
        # Nothing from here on can fail the save: it is committed, and the others know.
        remove(replaced)
        if save.best is not None:
            point_best(save.best)
        rotate(checkpoints, keep_last, protected, best)
    return save.final


def _lead(save: Save, held: contextlib.ExitStack, facts: dict[str, Any]) -> Path | None:
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
        told = error if is_told else shared_error(save.explain([explain(error, save)]))
        with contextlib.suppress(BigftError):
            save.ranks.tell(stage, str(told))
        # A bug keeps its own traceback; what a user can repair is one error on all ranks.
        if isinstance(error, OSError | BigftError):
            raise told from error
        raise
    save.ranks.tell(stage, "")
    return replaced


def _follow(save: Save) -> Path:
    with silence_explained(save):
        problem = save.ranks.hear("begin")
        if not problem:
            part = write_part(save)
            save.ranks.report("part", part.to_text())
            if part.bug:
                raise part.bug
            # Rank 0 itself waits so long for the slowest rank.
            problem = save.ranks.hear("outcome", patience=2)
    if problem:
        raise shared_error(problem)
    return save.final


def _write_and_publish(save: Save, facts: dict[str, Any]) -> Path | None:
    """Go from an empty folder to a committed one; return where the one it replaced is."""
    try:
        save.ranks.tell("begin", "")
        records = _agree(save, write_part(save))
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


def _agree(save: Save, mine: Part) -> list[FileRecord]:
    """Collect every file of all ranks."""
    return [entry for records in agree(save, mine) for entry in records]


def _seal(save: Save, facts: dict[str, Any], records: list[FileRecord]) -> None:
    """Write the manifest, once rank 0 too sees every file."""
    check_files(save.partial, records)
    sequence = {"sequence": next_sequence(save.checkpoints)}
    with Files(save.partial).create(MANIFEST_NAME) as file:
        file.write(format_manifest({**facts, **sequence}, records).encode())
    sync(save.partial)

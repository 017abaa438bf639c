"""Commit a checkpoint: all ranks write, all agree, and one rename makes it count.

    rank 0    lock, clear up after crashes, mkdir .tmp-step_00000500-<id>    -> "begin"
    all       write, hash and fsync their files; fsync the folders           -> "part-<rank>"
    rank 0    manifest.json, fsync, rename to step_00000500, fsync; latest   -> "outcome"; rotation

Before the rename nothing counts, after it everything does. A process can be killed between any two
of these calls: what it leaves is either complete under its final name, or has a name that nobody
reads and that the next start removes. See docs/decisions/0010-commit-protocol.md.
"""

import contextlib
import itertools
import json
import logging
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bigft.checkpoint.exchange import exchange
from bigft.checkpoint.files import FileRecord, Files, sync
from bigft.checkpoint.manifest import (
    LATEST_NAME,
    MANIFEST_NAME,
    check_files,
    find_committed,
    format_manifest,
    next_sequence,
    read_manifest,
    set_aside,
)
from bigft.distributed.claim import claimed
from bigft.errors import BigftError, CheckpointError
from bigft.units import format_bytes

logger = logging.getLogger(__name__)

_UNFINISHED = ".tmp-"
# A committed checkpoint whose successor of the same step is being renamed into its place.
_ASIDE = ".aside-"

_SAVE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAMED_PROBLEMS = 4


class Board(Protocol):
    """Messages among the ranks that write one checkpoint."""

    def post(self, key: str, text: str) -> None:
        """Leave a message for all ranks."""

    def read(self, key: str, timeout_seconds: float) -> str | None:
        """Wait for a message and return it, or None at the time limit."""


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
        checkpoints,
        step,
        facts,
        write,
        rank,
        world_size,
        board,
        timeout_seconds,
        keep_last,
        protected,
        save_id,
    )
    return _lead(save) if rank == 0 else _follow(save)


def clean_up(checkpoints: Path) -> None:
    """Finish or remove what earlier crashes left in a run's `checkpoints/`.

    Call it on one rank before `find_candidates`; `write_checkpoint` does it by itself.

    Raises:
        LaunchError: Another process is saving there.
        OSError: The folder cannot be read or written.
    """
    if checkpoints.is_dir():
        with claimed(checkpoints):
            _clean_up(checkpoints)


@dataclass(frozen=True)
class _Save:
    """The arguments of one save, and the names that follow from them."""

    checkpoints: Path
    step: int
    facts: dict[str, Any]
    write: Callable[[Files], None]
    rank: int
    world_size: int
    board: Board
    timeout_seconds: float
    keep_last: int
    protected: Path | None
    save_id: str

    @property
    def final(self) -> Path:
        return self.checkpoints / f"step_{self.step:08d}"

    @property
    def partial(self) -> Path:
        return self.checkpoints / f"{_UNFINISHED}{self.final.name}-{self.save_id}"

    def post(self, key: str, text: str) -> None:
        self.board.post(f"{self.save_id}/{key}", text)

    def read(self, key: str, timeout_seconds: float) -> str | None:
        return self.board.read(f"{self.save_id}/{key}", timeout_seconds)

    def explain(self, problems: list[str]) -> str:
        """Put the problems of some ranks into the words that every rank raises."""
        named = "; ".join(problems[:_NAMED_PROBLEMS])
        if len(problems) > _NAMED_PROBLEMS:
            named += f"; and {len(problems) - _NAMED_PROBLEMS} more"
        return (
            f"{self.final}: the checkpoint was not saved ({named}). Older checkpoints are untouched"
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


def _lead(save: _Save) -> Path:
    stage = "begin"
    with contextlib.ExitStack() as held:
        try:
            _make_durably(save.checkpoints)
            held.enter_context(claimed(save.checkpoints))
            _clean_up(save.checkpoints)
            save.partial.mkdir()
            stage = "outcome"
            replaced = _write_and_publish(save)
        except BaseException as error:
            told = error if _is_shared(error) else _shared(save.explain([_explain(error, save)]))
            with contextlib.suppress(BigftError):
                save.post(stage, str(told))
            # A bug keeps its own traceback; what a user can repair is one error on all ranks.
            if isinstance(error, OSError | BigftError):
                raise told from error
            raise
        save.post(stage, "")
        # Nothing from here on can fail the save: it is committed.
        _remove(replaced)
        _rotate(save)
    return save.final


def _follow(save: _Save) -> Path:
    _hear(save, "begin", save.timeout_seconds)
    part = _write_part(save)
    save.post(f"part-{save.rank}", part.to_text())
    if part.bug:
        raise part.bug
    # Rank 0 itself waits so long for the slowest rank.
    _hear(save, "outcome", 2 * save.timeout_seconds)
    return save.final


def _hear(save: _Save, key: str, timeout_seconds: float) -> None:
    text = save.read(key, timeout_seconds)
    if text is None:
        problem = f"rank 0 did not answer rank {save.rank} within {timeout_seconds:g} s"
        error = CheckpointError(save.explain([problem]))
        error.is_local = True
        raise error
    if text:
        raise _shared(text)


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


def _write_and_publish(save: _Save) -> Path | None:
    """Go from an empty folder to a committed one; return where the one it replaced is."""
    try:
        save.post("begin", "")
        part = _write_part(save)
        records = _agree(save, part)
        _seal(save, records)
        if save.final.exists() and not _is_whole(save.final):
            set_aside(save.final)
        replaced = _publish(save.partial, save.final)
    except BaseException:
        _remove(save.partial)
        raise
    # An error here leaves a complete checkpoint of which nobody can say that it survives a power
    # cut: the save counts as failed, and nothing is removed.
    sync(save.checkpoints)
    _point_latest(save)
    return replaced


def _agree(save: _Save, mine: _Part) -> list[FileRecord]:
    """Collect the reports of all ranks: every file, or the error of all."""
    deadline = time.monotonic() + save.timeout_seconds
    parts = [mine]
    missing = []
    for rank in range(1, save.world_size):
        text = save.read(f"part-{rank}", max(0.0, deadline - time.monotonic()))
        if text is None:
            missing.append(rank)
        else:
            parts.append(_Part.from_text(text))
    if mine.bug:
        raise mine.bug
    problems = [part.problem for part in parts if part.problem]
    if missing:
        ranks = ("rank " if len(missing) == 1 else "ranks ") + ", ".join(map(str, missing))
        problems.insert(0, f"{ranks} did not report within {save.timeout_seconds:g} s")
    records = [entry for part in parts for entry in part.records]
    counts = Counter([MANIFEST_NAME, *(entry.path for entry in records)])
    problems += [f"{name} was written twice" for name, count in counts.items() if count > 1]
    if problems:
        raise _shared(save.explain(problems))
    return records


def _seal(save: _Save, records: list[FileRecord]) -> None:
    """Write the manifest, once rank 0 too sees every file."""
    check_files(save.partial, records)
    sequence = {"sequence": next_sequence(save.checkpoints)}
    text = format_manifest({**save.facts, "step": save.step, **sequence}, records)
    with Files(save.partial).create(MANIFEST_NAME) as file:
        file.write(text.encode())
    sync(save.partial)


def _publish(partial: Path, final: Path) -> Path | None:
    """Give the new folder its name; an error leaves everything as it was.

    Returns:
        Where the checkpoint is that had the name before.
    """
    if not os.path.lexists(final):
        partial.rename(final)
        return None
    # A run that resumed from an older checkpoint arrives here again: the newer state wins.
    if exchange(partial, final):
        return partial
    # Killed between these two: `_clean_up` gives the old one its name back.
    aside = final.with_name(f"{_ASIDE}{final.name}")
    final.rename(aside)
    try:
        partial.rename(final)
    except OSError:
        aside.rename(final)
        raise
    return aside


def _point_latest(save: _Save) -> None:
    """Say which checkpoint is the newest, for people and scripts; bigft itself never asks."""
    partial = save.checkpoints / f"{_UNFINISHED}{LATEST_NAME}"
    try:
        with Files(save.checkpoints).create(partial.name) as file:
            file.write(f"{save.final.name}\n".encode())
        partial.replace(save.checkpoints / LATEST_NAME)
        sync(save.checkpoints)
    except OSError as error:
        logger.warning("%s is committed, but `latest` is not up to date: %s", save.final, error)


def _rotate(save: _Save) -> None:
    """Remove what is older than the newest `keep_last` checkpoints that verify."""
    try:
        verified = find_committed(save.checkpoints)
        for old in verified[: -save.keep_last]:
            if not _is_same(old, save.protected):
                _remove(_to_trash(old))
                logger.info("rotated out %s", old.name)
    except OSError as error:
        logger.warning("%s: old checkpoints could not be removed: %s", save.checkpoints, error)


def _clean_up(checkpoints: Path) -> None:
    # A rename that a crash left in memory only must reach the disk before anything is deleted.
    sync(checkpoints)
    for path in sorted(checkpoints.iterdir()):
        if path.name.startswith(_ASIDE):
            final = path.with_name(path.name.removeprefix(_ASIDE))
            if os.path.lexists(final):
                _remove(_to_trash(path))
            else:
                path.rename(final)
                sync(checkpoints)
        elif path.name.startswith(_UNFINISHED):
            _remove(path)


def _to_trash(path: Path) -> Path:
    """Take a checkpoint's name away: a folder with such a name is never half deleted."""
    name = f"{_UNFINISHED}trash-{path.name.lstrip('.')}"
    names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    trash = next(free for name in names if not os.path.lexists(free := path.with_name(name)))
    path.rename(trash)
    return trash


def _remove(path: Path | None) -> None:
    """Delete what nobody reads; what cannot be deleted is for the next start."""
    if path is None or not os.path.lexists(path):
        return
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        logger.warning("%s could not be removed (%s); the next save tries again", path, error)


def _make_durably(folder: Path) -> None:
    """Make a folder and those above it, and put their names on disk."""
    if folder.is_dir():
        return
    _make_durably(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def _is_whole(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except CheckpointError:
        return False
    return True


def _is_same(first: Path, second: Path | None) -> bool:
    return second is not None and second.exists() and first.samefile(second)


def _explain(error: BaseException, save: _Save) -> str:
    """Say what failed, where, and how much space there is."""
    if isinstance(error, OSError):
        place = error.filename or save.checkpoints
        text = f"{place}: {error.strerror or error} (errno {error.errno}), {_free(save)}"
    elif isinstance(error, BigftError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    return f"rank {save.rank}: {text}"


def _free(save: _Save) -> str:
    try:
        folder = next(
            path for path in (save.checkpoints, *save.checkpoints.parents) if path.exists()
        )
        return f"{format_bytes(shutil.disk_usage(folder).free)} free there"
    except (OSError, StopIteration):
        return "free space unknown"


def _shared(text: str) -> CheckpointError:
    error = CheckpointError(text)
    error.is_shared = True
    return error


def _is_shared(error: BaseException) -> bool:
    return isinstance(error, CheckpointError) and error.is_shared

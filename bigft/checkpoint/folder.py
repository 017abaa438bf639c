"""The names in a run's `checkpoints/`, and the renames between them.

step_00000500             committed: complete, always
.tmp-...                  being written or deleted; removed at the next start
.aside-step_00000500      replaced at this moment; gets its name back if nothing took it
damaged-step_00000500     did not verify at a resume; kept for a person to look at
latest                    name of the newest, for people and scripts; bigft never asks
best                      name of the best by a metric, where the run keeps it; likewise
"""

import itertools
import logging
import os
import shutil
from pathlib import Path

from bigft.checkpoint.exchange import exchange
from bigft.checkpoint.files import Files, sync
from bigft.checkpoint.manifest import (
    BEST_NAME,
    LATEST_NAME,
    find_committed,
    find_present,
    read_manifest,
    read_own_manifest,
    set_aside,
)
from bigft.distributed.claim import claimed
from bigft.errors import CheckpointError

logger = logging.getLogger(__name__)

_UNFINISHED = ".tmp-"
_ASIDE = ".aside-"


def final_place(checkpoints: Path, step: int) -> Path:
    """Return the folder of a committed checkpoint."""
    return checkpoints / f"step_{step:08d}"


def partial_place(checkpoints: Path, step: int, save_id: str) -> Path:
    """Return the folder in which a checkpoint is written."""
    return checkpoints / f"{_UNFINISHED}step_{step:08d}-{save_id}"


def clean_up(checkpoints: Path) -> None:
    """Finish or remove what earlier crashes left in a run's `checkpoints/`.

    Call it on one rank before reading from there; saving and choosing do it by themselves.

    Raises:
        LaunchError: Another process is saving there.
        CheckpointError: The folder cannot be read or written.
    """
    try:
        if checkpoints.is_dir():
            with claimed(checkpoints):
                clear_debris(checkpoints)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or checkpoints}: what a crash left cannot be cleaned up"
            f" ({error.strerror}); check the folder's owner and its disk"
        ) from error


def clear_debris(checkpoints: Path) -> None:
    """Do the work of `clean_up` for a caller that has claimed the folder.

    Raises:
        OSError: The folder cannot be read or written.
    """
    # A rename that a crash left in memory only must reach the disk before anything is deleted.
    sync(checkpoints)
    for path in sorted(checkpoints.iterdir()):
        if path.name.startswith(_ASIDE):
            final = path.with_name(path.name.removeprefix(_ASIDE))
            if os.path.lexists(final):
                remove(move_to_trash(path))
            else:
                path.rename(final)
                sync(checkpoints)
        elif path.name.startswith(_UNFINISHED):
            remove(path)


def publish(partial: Path, final: Path, *, is_part: bool = False) -> Path | None:
    """Give a finished folder its name. This rename is the commit.

    Args:
        partial: Everything is on disk in it.
        final: Its name from now on; a checkpoint that has it is replaced.
        is_part: Whether other storages hold files of the same checkpoints.

    Returns:
        Where the checkpoint is now that had the name before; still to be removed.

    Raises:
        OSError: It failed, and everything is as it was.
    """
    if not os.path.lexists(final):
        partial.rename(final)
        return None
    # A run that resumed from an older checkpoint arrives here again: the newer state wins.
    if not _is_whole(final, is_part=is_part):
        set_aside(final)
        partial.rename(final)
        return None
    if exchange(partial, final):
        return partial
    # Killed between these two: `clear_debris` gives the old one its name back.
    aside = final.with_name(f"{_ASIDE}{final.name}")
    final.rename(aside)
    try:
        partial.rename(final)
    except OSError:
        aside.rename(final)
        raise
    return aside


def point_latest(final: Path) -> None:
    """Say which checkpoint is the newest; a failure costs nothing but a warning."""
    _point(final, LATEST_NAME)


def point_best(final: Path) -> None:
    """Say which checkpoint is the best; a failure costs nothing but a warning."""
    _point(final, BEST_NAME)


def _point(final: Path, name: str) -> None:
    partial = final.with_name(f"{_UNFINISHED}{name}")
    try:
        with Files(final.parent).create(partial.name) as file:
            file.write(f"{final.name}\n".encode())
        partial.replace(final.with_name(name))
        sync(final.parent)
    except OSError as error:
        logger.warning("%s is committed, but `%s` is not up to date: %s", final, name, error)


def rotate(checkpoints: Path, keep_last: int, *protected: Path | None) -> None:
    """Remove what is older than the newest `keep_last` checkpoints that verify.

    A folder that does not verify is neither counted nor removed. A failure is a warning.

    Args:
        checkpoints: The run's folder.
        keep_last: Checkpoints to leave, from 1.
        protected: Stay in any case.
    """
    try:
        for old in find_committed(checkpoints)[:-keep_last]:
            if not any(one and one.exists() and old.samefile(one) for one in protected):
                remove(move_to_trash(old))
                logger.info("rotated out %s", old.name)
    except (OSError, CheckpointError) as error:
        logger.warning("%s: old checkpoints could not be removed: %s", checkpoints, error)


def remove(path: Path | None) -> None:
    """Delete what nobody reads; what cannot be deleted is left for the next start."""
    if path is None or not os.path.lexists(path):
        return
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        logger.warning("%s could not be removed (%s); the next save tries again", path, error)


def make_durably(folder: Path) -> None:
    """Make a folder and those above it, and put their names on disk."""
    if folder.is_dir():
        return
    make_durably(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def move_to_trash(path: Path) -> Path:
    """Take a checkpoint's name away: a folder with such a name is never half deleted."""
    name = f"{_UNFINISHED}trash-{path.name.lstrip('.')}"
    names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    trash = next(free for name in names if not os.path.lexists(free := path.with_name(name)))
    path.rename(trash)
    return trash


def _is_whole(folder: Path, *, is_part: bool) -> bool:
    try:
        if is_part:
            find_present(folder, read_own_manifest(folder))
        else:
            read_manifest(folder)
    except CheckpointError:
        return False
    return True

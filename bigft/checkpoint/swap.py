"""A folder that is being made, and its final name, in one step even if that name is taken."""

import contextlib
import ctypes
import errno
import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from bigft.checkpoint.manifest import MANIFEST_NAME
from bigft.errors import CheckpointError, ConfigError

MARKER_NAME = "bigft_export.json"
"""File that marks a folder as an export of bigft, which a later export may replace."""

_PREVIOUS = ".partial-previous-"
"""Between the name of an export and a process's number: what that process was replacing."""

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def check_output(output: Path) -> None:
    """Check that a result can get this name, before any work is done.

    Raises:
        ConfigError: It is a file, or its parent cannot be written.
        CheckpointError: It is a folder with something else than a previous export in it.
    """
    if output.is_dir():
        if any(output.iterdir()) and not (output / MARKER_NAME).is_file():
            raise CheckpointError(
                f"{output}: not empty and not an earlier export of bigft (no {MARKER_NAME}); "
                "choose another output folder, or remove this one"
            )
    elif output.exists():
        raise ConfigError(f"{output}: is a file; choose another output folder")
    if inside := next((path for path in output.parents if (path / MANIFEST_NAME).exists()), None):
        raise ConfigError(
            f"{output}: lies in the checkpoint {inside.name}, which would count as damaged with"
            " other files in it; choose another output folder"
        )
    existing = next(path for path in output.parents if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{output}: {existing} cannot be written; choose another output folder")


@contextlib.contextmanager
def unfinished_folder(output: Path) -> Iterator[Path]:
    """Make the folder `<output>.partial` for this process alone, and remove what is left of it.

    What an earlier process that was killed left behind is removed first. Inside the block
    `swap_into_place` may take the folder away.

    Raises:
        CheckpointError: Another process is at work on the same output.
        OSError: The folder cannot be made.
    """
    partial = output.with_name(f"{output.name}.partial")
    descriptor = _make_locked(partial)
    try:
        for leftover in partial.iterdir():
            _remove(leftover)
        _clear_previous(output)
        yield partial
    finally:
        # Under that name may be another process's folder by now.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.lstat(partial)):
                shutil.rmtree(partial, ignore_errors=True)
        os.close(descriptor)


def _clear_previous(output: Path) -> None:
    """Finish what a killed process began; the caller holds the lock, so that none is at it."""
    for previous in output.parent.glob(f"{glob.escape(output.name)}{_PREVIOUS}*"):
        if os.path.lexists(output):
            shutil.rmtree(previous, ignore_errors=True)
        else:
            previous.rename(output)


def _make_locked(partial: Path) -> int:
    """Make a folder and lock it; the system lets go of it when the descriptor is closed."""
    while True:
        partial.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # another process finished and renamed it just now
        try:
            _lock(descriptor, partial)
            if os.path.samestat(os.fstat(descriptor), os.lstat(partial)):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, partial: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems cannot lock: better to go on than to refuse.
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise CheckpointError(
                f"{partial}: another process is writing there; wait for it, or choose another"
                " output folder"
            ) from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def swap_into_place(finished: Path, output: Path) -> None:
    """Rename a finished folder; a previous one of that name is removed afterwards.

    Both lie in one parent folder. Readers of `output` see the old folder or the new one.
    """
    if not output.exists() or not any(output.iterdir()):
        finished.replace(output)  # rename(2) replaces an empty folder
    else:
        previous = output.with_name(f"{output.name}{_PREVIOUS}{os.getpid()}")
        if _exchange(finished, output):
            finished.rename(previous)
        else:
            # Without renameat2 (some network file systems) the name is missing for a moment.
            output.rename(previous)
            finished.rename(output)
        # Another process may be removing it, too: that of the next export.
        shutil.rmtree(previous, ignore_errors=True)
    descriptor = os.open(output.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one system call, if the system can."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)

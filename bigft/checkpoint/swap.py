"""Give a finished folder its final name, in one step even if that name is taken."""

import ctypes
import os
import shutil
from pathlib import Path

from bigft.errors import CheckpointError, ConfigError

MARKER_NAME = "bigft_export.json"
"""File that marks a folder as an export of bigft, which a later export may replace."""

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
    existing = next(path for path in output.parents if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{output}: {existing} cannot be written; choose another output folder")


def swap_into_place(finished: Path, output: Path) -> None:
    """Rename a finished folder; a previous one of that name is removed afterwards.

    Both lie in one parent folder. Readers of `output` see the old folder or the new one.
    """
    if not output.exists() or not any(output.iterdir()):
        finished.replace(output)  # rename(2) replaces an empty folder
    elif _exchange(finished, output):
        shutil.rmtree(finished)
    else:
        # Without renameat2 (some network file systems) the name is missing for a moment.
        previous = output.with_name(f"{output.name}.old-{os.getpid()}")
        output.rename(previous)
        finished.rename(output)
        shutil.rmtree(previous)
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

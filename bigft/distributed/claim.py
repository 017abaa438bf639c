"""One process at a time in a folder: two runs must not write to the same place."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from bigft.errors import LaunchError

logger = logging.getLogger(__name__)

CLAIM_NAME = ".lock"

# The system's locks are between processes; these are between the threads of this one.
_claimed: set[str] = set()
_guard = threading.Lock()

_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL})


@contextlib.contextmanager
def claimed(folder: Path, name: str = CLAIM_NAME) -> Iterator[None]:
    """Hold a folder for the length of the block; the system lets go of it if the process dies.

    A record lock and not `flock`: processes forked inside the block do not hold it on.

    Args:
        folder: An existing folder.
        name: The lock file in it; what holds different names does not disturb each other.

    Raises:
        LaunchError: Another process, or another thread of this one, holds it.
        OSError: The lock file cannot be opened.
    """
    key = str(folder.resolve() / name)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    with _guard:
        if key in _claimed:
            raise LaunchError(f"{folder}: already in use by this process (pid {os.getpid()})")
        _claimed.add(key)
    try:
        descriptor = os.open(key, flags, 0o666)
        try:
            _lock(descriptor, folder)
            yield
        finally:
            # Nothing of worth was written through it.
            with contextlib.suppress(OSError):
                os.close(descriptor)
    finally:
        with _guard:
            _claimed.discard(key)


def find_holder(folder: Path, name: str = CLAIM_NAME) -> str | None:
    """Say which other process holds a folder; None: nobody does."""
    try:
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None
    except OSError as error:
        is_held = error.errno in (errno.EACCES, errno.EAGAIN)
        return _read_holder(descriptor) if is_held else None
    finally:
        os.close(descriptor)


def _read_holder(descriptor: int) -> str:
    holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
    return holder or "another process"


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            # Network file systems without a lock service: better to go on than to refuse.
            logger.warning("%s: cannot be locked (%s); start no second run here", folder, error)
            return
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise LaunchError(
            f"{folder}: in use by {_read_holder(descriptor)}; let it finish, or choose another"
            " folder"
        ) from error
    # For the message of who comes second; if it cannot be written the lock holds all the same.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

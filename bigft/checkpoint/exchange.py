"""Exchange two names of a folder in one step, where the system can."""

import ctypes
import errno
import os
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

# What kernels and file systems (NFS, some FUSE ones) answer that know no exchange.
_UNKNOWN = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.EXDEV})


def exchange(first: Path, second: Path) -> bool:
    """Give each of two existing paths the other's name; at no moment is either missing.

    Returns:
        False, with nothing changed, if this system or file system has no such operation.

    Raises:
        OSError: It has, and it failed; nothing changed.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    words = (os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    if rename(_AT_FDCWD, *words) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNKNOWN:
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))

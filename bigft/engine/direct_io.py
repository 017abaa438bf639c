"""Ranges of files, moved past the page cache by a few threads, and checked when they are read.

    memory --pwrite--> file, crc32 kept in memory          file --pread--> memory, crc32 compared

Through the page cache the kernel would copy every byte once more, and count what is not written yet
as memory. Pieces that O_DIRECT cannot take, and file systems that lack it, go through it anyway.
"""

import errno
import mmap
import os
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

ALIGNMENT = 4096
"""What O_DIRECT wants positions, lengths and memory to be multiples of, on any disk."""

_PIECE = 8 << 20
_DIRECT: int = getattr(os, "O_DIRECT", 0)


def round_up(size: int) -> int:
    """Round bytes up to whole pages."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def allocate(size: int) -> Bytes:
    """Allocate zeroed bytes, `(size,)`, that begin at a page."""
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), np.uint8)[:size]


class DirectIO:
    """Reads and writes in the background; what was written is known by its checksum."""

    def __init__(self, threads: int = 4) -> None:
        """Start no thread yet."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="swap")
        self._sums: dict[tuple[Path, int, int], int] = {}
        self.bytes_read = 0
        self.bytes_written = 0

    def write(self, path: Path, position: int, data: Bytes) -> list["Future[None]"]:
        """Begin to write a range; the memory must not change until all is done."""
        self.bytes_written += len(data)
        return [self._pool.submit(self._write, path, *piece) for piece in _cut(position, data)]

    def read(self, path: Path, position: int, data: Bytes) -> list["Future[None]"]:
        """Begin to fill `data` from a file.

        A future raises an OSError if the file is too short, or if a range that was written by this
        object, of the same place and length, is not what was written.
        """
        self.bytes_read += len(data)
        return [self._pool.submit(self._read, path, *piece) for piece in _cut(position, data)]

    def close(self) -> None:
        """Wait for everything."""
        self._pool.shutdown()

    def _write(self, path: Path, position: int, data: Bytes) -> None:
        self._sums[path, position, len(data)] = zlib.crc32(data.data)
        _move(path, position, data, is_write=True)

    def _read(self, path: Path, position: int, data: Bytes) -> None:
        _move(path, position, data, is_write=False)
        wanted = self._sums.get((path, position, len(data)))
        if wanted is not None and zlib.crc32(data.data) != wanted:
            raise OSError(errno.EIO, "what was read is not what was written", str(path))


def _cut(position: int, data: Bytes) -> list[tuple[int, Bytes]]:
    return [(position + n, data[n : n + _PIECE]) for n in range(0, len(data), _PIECE)]


def _move(path: Path, position: int, data: Bytes, *, is_write: bool) -> None:
    whole = len(data) // ALIGNMENT * ALIGNMENT
    is_aligned = position % ALIGNMENT == 0 and data.ctypes.data % ALIGNMENT == 0
    done = 0
    if is_aligned and whole:
        done = _move_with(path, position, data[:whole], is_write, _DIRECT)
    if done < len(data):
        _move_with(path, position + done, data[done:], is_write, 0)


def _move_with(path: Path, position: int, data: Bytes, is_write: bool, flags: int) -> int:
    flags |= os.O_CLOEXEC | ((os.O_WRONLY | os.O_CREAT) if is_write else os.O_RDONLY)
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno == errno.EINVAL and flags & _DIRECT:
            return 0  # This file system has no direct I/O.
        raise
    try:
        done = 0
        while done < len(data):
            view = data.data[done:]
            move = os.pwrite if is_write else _pread
            moved = move(descriptor, view, position + done)
            if moved == 0:
                raise OSError(errno.EIO, "the file is shorter than what was written", str(path))
            done += moved
        return done
    except OSError as error:
        if error.errno == errno.EINVAL and flags & _DIRECT and done == 0:
            return 0  # A disk of larger blocks.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


def _pread(descriptor: int, view: memoryview, position: int) -> int:
    return os.preadv(descriptor, [view], position)

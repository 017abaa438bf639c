"""Rates of a disk, measured as runs use it: past the page cache, several pieces at a time."""

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

import numpy as np

from bigft.engine.direct_io import Bytes, DirectIO, allocate
from bigft.probe.timing import SECONDS, Reading, summarize

LARGEST_FILE = 1 << 30
_ROUND = 64 << 20
_MARGIN = 1 << 30
"""Of free space that has to remain."""


class NoRoomError(Exception):
    """The disk is too full to be measured."""


def measure_disk(folder: Path, seconds: float = SECONDS) -> tuple[Reading, Reading, bool]:
    """Measure bytes per second read and written, with a file of at most 1 GiB.

    The file has no name from its start on: nothing is left, however this ends.

    Args:
        folder: An existing folder of the disk.
        seconds: Limit of each way.

    Returns:
        Read and written, and whether that was direct I/O: elsewhere it is the page cache's rate.

    Raises:
        NoRoomError: Less than the file and 1 GiB are free there.
        OSError: The folder cannot be written to.
    """
    stat = os.statvfs(folder)
    if stat.f_bavail * stat.f_frsize < LARGEST_FILE + _MARGIN:
        free = stat.f_bavail * stat.f_frsize / 1e9
        raise NoRoomError(f"{folder}: {free:.1f} GB free, and a measurement needs 2.1 GB")
    # Random bytes, which no file system can pack.
    data = allocate(_ROUND)
    data[:] = np.frombuffer(np.random.default_rng(0).bytes(_ROUND), np.uint8)
    with _nameless(folder) as file, contextlib.closing(DirectIO()) as io:
        written = list(_write(io, file, data, seconds))
        read = list(_read(io, file, data, len(written), seconds))
        is_direct = _takes_direct_io(file)
    return summarize(read), summarize(written), is_direct


@contextlib.contextmanager
def _nameless(folder: Path) -> Iterator[Path]:
    descriptor, name = tempfile.mkstemp(prefix=".bigft-probe-", dir=folder)
    try:
        Path(name).unlink()
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _write(io: DirectIO, file: Path, data: Bytes, seconds: float) -> Iterator[float]:
    end, position = time.perf_counter() + seconds, 0
    while position == 0 or (time.perf_counter() < end and position < LARGEST_FILE):
        started = time.perf_counter()
        _finish(io.write(file, position, data))
        if not _takes_direct_io(file):
            _flush(file)
        yield len(data) / (time.perf_counter() - started)
        position += len(data)


def _read(io: DirectIO, file: Path, data: Bytes, rounds: int, seconds: float) -> Iterator[float]:
    end = time.perf_counter() + seconds
    for number in range(rounds):
        started = time.perf_counter()
        _finish(io.read(file, number * _ROUND, data))
        yield len(data) / (time.perf_counter() - started)
        if time.perf_counter() > end:
            return


def _finish(futures: list) -> None:  # type: ignore[type-arg]
    wait(futures)
    for future in futures:
        future.result()


def _takes_direct_io(file: Path) -> bool:
    try:
        os.close(os.open(file, os.O_RDONLY | getattr(os, "O_DIRECT", 0)))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)

"""Fill safetensors files from the slices of a checkpoint, one block of the result at a time.

    slices --pread--> cast, checked --> block of 8 MiB --pwrite, past the page cache--> file

A block is written once, whole and in place, so that the files can be written with O_DIRECT: through
the page cache the kernel copies every byte once more and holds writers back when too much of it is
dirty (1.1 billion parameters to bfloat16 on 2 cores: 9.7 s through it, 3.4 s past it).
"""

import errno
import hashlib
import mmap
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bigft.checkpoint.cast import CARRIERS, CASTABLE, Raw, cast_into, is_finite, make_scratch
from bigft.checkpoint.layout import Slice, SourceTensor
from bigft.checkpoint.safetensors_out import PlannedFile
from bigft.checkpoint.strided import read_strided
from bigft.errors import CheckpointError
from bigft.files.torch_file import ITEM_BYTES
from bigft.optim.reference import join

BLOCK_BYTES = 8 << 20
"""One write. Big enough that a disk or a network file system streams."""

# One read that is cast: it stays in the processor's second-level cache.
_READ_BYTES = 1 << 20
# What O_DIRECT wants positions, lengths and memory to be multiples of, on any disk.
_ALIGNMENT = 4096
_DIRECT: int = getattr(os, "O_DIRECT", 0)

Digests = dict[tuple[str, int], bytes]
"""Name of a file and first byte of a block -> sha256 of the block, as it was written."""


class Segment(NamedTuple):
    """Bytes of a result file that come from one place."""

    begin: int
    end: int
    name: str
    """Of the tensor."""
    source: Slice | bytes
    dtype: str = "uint8"
    """In the result."""


@dataclass(frozen=True)
class _Job:
    """One block of a result file."""

    file: PlannedFile
    segments: Sequence[Segment]
    starts: Sequence[int]
    begin: int
    end: int


def write_tensors(
    tensors: Sequence[SourceTensor],
    files: Sequence[PlannedFile],
    folder: Path,
    threads: int,
    *,
    with_digests: bool = False,
    advance: Callable[[int], object] = lambda num_bytes: None,
) -> Digests:
    """Fill the preallocated files of a plan from the tensors' slices, cast to the planned formats.

    Args:
        tensors: Where the values are.
        files: What to write.
        folder: Where the files are, at their full length.
        threads: Blocks in flight.
        with_digests: Whether to hash what is written.
        advance: Called with the number of bytes, after each block; not by two threads at once.

    Returns:
        The blocks' digests, if asked for.

    Raises:
        CheckpointError: A shard is shorter than its structure says, of a format that cannot be
            cast, or has a value that is not finite.

    Memory: `threads` times 10 MiB.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    jobs = (job for file in files for job in _plan_blocks(file, by_name))
    digests: Digests = {}
    writer = _Writer(folder)

    def work(job: _Job, buffers: Buffers) -> None:
        block = buffers.block[: job.end - job.begin]
        _fill(job, block, buffers)
        writer.write(job.file.name, block, job.begin)
        if with_digests:
            digests[job.file.name, job.begin] = hashlib.sha256(block.data).digest()

    run(work, jobs, threads, lambda job: advance(job.end - job.begin))
    return digests


def reread(
    files: Sequence[PlannedFile],
    folder: Path,
    digests: Digests,
    threads: int,
    advance: Callable[[int], object] = lambda num_bytes: None,
) -> None:
    """Read finished files again, from the disk where that is possible, and compare every block.

    Raises:
        CheckpointError: A block is not what was written.

    Memory: `threads` times 10 MiB.
    """
    jobs = (
        _Job(file, (), (), begin, min(begin + BLOCK_BYTES, file.file_bytes))
        for file in files
        for begin in range(0, file.file_bytes, BLOCK_BYTES)
    )

    def work(job: _Job, buffers: Buffers) -> None:
        path = folder / job.file.name
        block = buffers.block[: job.end - job.begin]
        _read_back(path, block, buffers, job.begin)
        if hashlib.sha256(block.data).digest() != digests[job.file.name, job.begin]:
            raise CheckpointError(
                f"{path}: bytes {job.begin:,} to {job.end:,} are not what was written; the disk,"
                " its driver or its memory is at fault. Choose another output folder"
            )

    run(work, jobs, threads, lambda job: advance(job.end - job.begin))


# --- threads -------------------------------------------------------------------------------------


class Buffers:
    """Each thread's own pages: fresh ones per block would cost a page fault every 4 KiB."""

    def __init__(self) -> None:
        """Allocate them."""
        # A mapping begins on a page, as O_DIRECT wants it.
        self.block: NDArray[np.uint8] = np.frombuffer(mmap.mmap(-1, BLOCK_BYTES), np.uint8)
        self.source: NDArray[np.uint8] = np.empty(_READ_BYTES, np.uint8)
        self.scratch = make_scratch()


def run(
    work: Callable[[_Job, Buffers], None],
    jobs: Iterator[_Job],
    threads: int,
    done: Callable[[_Job], object],
) -> None:
    """Do the jobs on threads, which take them one by one; the first error stops all of them."""
    lock = threading.Lock()
    stopped = threading.Event()

    def work_on() -> None:
        buffers = Buffers()
        last: _Job | None = None
        while not stopped.is_set():
            with lock:
                if last is not None:
                    done(last)
                last = next(jobs, None)
            if last is None:
                return
            try:
                work(last, buffers)
            except BaseException:
                stopped.set()
                raise

    with ThreadPoolExecutor(threads, thread_name_prefix="consolidate") as pool:
        try:
            for worker in [pool.submit(work_on) for _ in range(threads)]:
                worker.result()
        finally:
            stopped.set()  # Ctrl-C arrives here, not in the threads


# --- planning ------------------------------------------------------------------------------------


def _plan_blocks(file: PlannedFile, by_name: Mapping[str, SourceTensor]) -> Iterator[_Job]:
    segments = list(_plan_segments(file, by_name))
    starts = [segment.begin for segment in segments]
    for begin in range(0, file.file_bytes, BLOCK_BYTES):
        yield _Job(file, segments, starts, begin, min(begin + BLOCK_BYTES, file.file_bytes))


def _plan_segments(file: PlannedFile, by_name: Mapping[str, SourceTensor]) -> Iterator[Segment]:
    """List where the bytes of a file come from, front to back and without gaps."""
    yield Segment(0, len(file.header), "", file.header)
    for entry in file.entries:
        begin = file.offsets[entry.name]
        for piece in by_name[entry.name].slices:
            if piece.dtype != entry.dtype and not {piece.dtype, entry.dtype} <= CASTABLE:
                raise CheckpointError(
                    f"{piece.path}: {entry.name} is {piece.dtype}, which cannot become"
                    f" {entry.dtype}"
                )
            end = begin + piece.numel * ITEM_BYTES[entry.dtype]
            yield Segment(begin, end, entry.name, piece, entry.dtype)
            begin = end


# --- reading -------------------------------------------------------------------------------------


def _fill(job: _Job, block: NDArray[np.uint8], buffers: Buffers) -> None:
    first = bisect_right(job.starts, job.begin) - 1
    for segment in job.segments[first:]:
        if segment.begin >= job.end:
            return
        begin, end = max(segment.begin, job.begin), min(segment.end, job.end)
        part = block[begin - job.begin : end - job.begin]
        if isinstance(segment.source, bytes):
            part[:] = np.frombuffer(segment.source, np.uint8)[begin : begin + len(part)]
        elif not _fill_part(segment, segment.source, begin - segment.begin, part, buffers):
            _raise_not_finite(segment)


def _fill_part(
    segment: Segment, piece: Slice, skipped: int, part: NDArray[np.uint8], buffers: Buffers
) -> bool:
    """Fill bytes of a segment from byte `skipped` on, and say whether all values are finite."""
    target = part.view(CARRIERS[segment.dtype])
    start = skipped // ITEM_BYTES[segment.dtype]
    if piece.rest_offset is not None:
        return _fill_joined(segment, piece, start, target, buffers)
    _announce(piece, start, len(target))
    if piece.dtype == segment.dtype:
        _read(piece, start, part)
        return is_finite(target, segment.dtype)
    carrier, item_bytes = CARRIERS[piece.dtype], ITEM_BYTES[piece.dtype]
    step = _READ_BYTES // item_bytes
    is_all_finite = True
    for low in range(0, len(target), step):
        cut = target[low : low + step]
        raw = buffers.source[: len(cut) * item_bytes]
        _read(piece, start + low, raw)
        is_all_finite &= cast_into(
            raw.view(carrier), piece.dtype, cut, segment.dtype, buffers.scratch
        )
    return is_all_finite


def _fill_joined(segment: Segment, piece: Slice, start: int, target: Raw, buffers: Buffers) -> bool:
    """Fill from fp32 numbers that are kept in two halves; to bf16 the upper ones are the result."""
    assert piece.rest_offset is not None, "the numbers are whole"
    upper = Slice(piece.path, piece.offset, piece.numel, "bfloat16")
    rest = Slice(piece.path, piece.rest_offset, piece.numel, piece.rest_dtype)
    _announce(upper, start, len(target))
    if segment.dtype == "bfloat16":
        _read(upper, start, target.view(np.uint8))
        return is_finite(target, segment.dtype)
    _announce(rest, start, len(target))
    step = _READ_BYTES // 4
    is_all_finite = True
    for low in range(0, len(target), step):
        cut = target[low : low + step]
        upper_raw = buffers.source[: len(cut) * 2]
        rest_raw = buffers.source[len(cut) * 2 :][: len(cut) * ITEM_BYTES[rest.dtype]]
        _read(upper, start + low, upper_raw)
        _read(rest, start + low, rest_raw)
        whole = join(upper_raw.view(np.uint16), rest_raw.view(CARRIERS[rest.dtype]))
        is_all_finite &= cast_into(whole, "float32", cut, segment.dtype, buffers.scratch)
    return is_all_finite


def _announce(piece: Slice, start: int, numel: int) -> None:
    """Let the kernel read what comes; by itself it reads 128 KiB ahead, not across our calls."""
    num_bytes = numel * ITEM_BYTES[piece.dtype]
    if num_bytes < _READ_BYTES or piece.strided is not None:
        return
    descriptor = os.open(piece.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        position = piece.offset + start * ITEM_BYTES[piece.dtype]
        os.posix_fadvise(descriptor, position, num_bytes, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)


def _read(piece: Slice, start: int, raw: NDArray[np.uint8]) -> None:
    """Read elements of a slice, from element `start` on, as many as fit."""
    if piece.strided is not None:
        carrier = CARRIERS[piece.dtype]
        raw.view(carrier)[:] = read_strided(
            piece.strided, start, len(raw) // ITEM_BYTES[piece.dtype]
        )
        return
    # pread, not mmap: mapped pages would count as our memory until the kernel takes them back.
    read_exactly(piece.path, raw, piece.offset + start * ITEM_BYTES[piece.dtype])


def read_exactly(path: Path, raw: NDArray[np.uint8], position: int, flags: int = 0) -> None:
    """Fill an array from a byte position of a file.

    Raises:
        CheckpointError: The file ends before.
    """
    view = raw.data
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        while view:
            count = os.preadv(descriptor, [view], position)
            if not count:
                raise CheckpointError(f"{path}: ends at byte {position:,}; it is cut off")
            view, position = view[count:], position + count
    finally:
        os.close(descriptor)


def _read_back(path: Path, block: NDArray[np.uint8], buffers: Buffers, begin: int) -> None:
    whole = len(block) // _ALIGNMENT * _ALIGNMENT
    try:
        if _DIRECT and whole:
            read_exactly(path, block[:whole], begin, _DIRECT)
        else:
            whole = 0
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        whole = 0
    if whole < len(block):
        # What is not dirty leaves the cache, and is read from the disk again.
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), begin, len(block), os.POSIX_FADV_DONTNEED)
        read_exactly(path, block[whole:], begin + whole)


def _raise_not_finite(segment: Segment) -> None:
    overflow = (
        "; the values may be beyond float16's 65,504: export bfloat16 or float32"
        if segment.dtype == "float16"
        else "; the training has diverged: export an earlier checkpoint"
    )
    raise CheckpointError(f"{segment.name} has values that are not finite{overflow}")


# --- writing -------------------------------------------------------------------------------------


@dataclass
class _Writer:
    """Writes blocks, past the page cache where the file system can."""

    folder: Path
    is_direct: bool = field(default=bool(_DIRECT))

    def write(self, name: str, block: NDArray[np.uint8], begin: int) -> None:
        """Write a block at its place; `begin` is a multiple of the alignment."""
        whole = len(block) // _ALIGNMENT * _ALIGNMENT if self.is_direct else 0
        if whole:
            try:
                self._write(name, block[:whole], begin, _DIRECT)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                # This file system has no such thing, or wants other alignments.
                self.is_direct, whole = False, 0
        self._write(name, block[whole:], begin + whole, 0)

    def _write(self, name: str, part: NDArray[np.uint8], position: int, flags: int) -> None:
        view = part.data
        if not view:
            return
        descriptor = os.open(self.folder / name, os.O_WRONLY | os.O_CLOEXEC | flags)
        try:
            while view:
                count = os.pwrite(descriptor, view, position)
                view, position = view[count:], position + count
        finally:
            os.close(descriptor)

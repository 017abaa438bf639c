"""Copy tensors from shards into preallocated safetensors files, a chunk at a time."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from bigft.checkpoint.cast import CARRIERS, CASTABLE, Raw, cast_into, is_finite
from bigft.checkpoint.layout import Slice, SourceTensor
from bigft.checkpoint.safetensors_out import PlannedFile, write_chunk
from bigft.checkpoint.torch_file import ITEM_BYTES, TensorRef
from bigft.errors import CheckpointError

# Big enough that a disk or a network file system streams, small enough that 8 threads stay below
# 300 MiB with source and result.
CHUNK_BYTES = 16 << 20

_Job = TypeVar("_Job", "Copy", "Scan")


@dataclass(frozen=True)
class Copy:
    """One chunk: elements of a source slice, and where they go."""

    source: Slice
    target: Path
    target_offset: int
    target_dtype: str


@dataclass(frozen=True)
class Scan:
    """One chunk of a finished file that has to be finite."""

    name: str
    path: Path
    offset: int
    num_bytes: int
    dtype: str


def copy_tensors(
    tensors: Sequence[SourceTensor], files: Sequence[PlannedFile], folder: Path, threads: int
) -> None:
    """Fill the files of a plan from the tensors' slices, cast to the planned formats.

    Raises:
        CheckpointError: A shard is shorter than its structure says, or of a format that cannot be
            cast.

    Memory: `threads` times one chunk of source and of result.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    copies = (
        chunk
        for file in files
        for entry in file.entries
        for chunk in _plan_copies(
            by_name[entry.name], folder / file.name, file.offsets[entry.name], entry.dtype
        )
    )
    buffers = _Buffers()
    _run(lambda copy: _copy_chunk(copy, buffers), copies, threads)


def check_finite(
    files: Sequence[PlannedFile], offsets: Mapping[str, int], folder: Path, threads: int
) -> None:
    """Check that every value of the written files is finite.

    Args:
        files: The plan of the files.
        offsets: Tensor name -> byte position, as read back from the files.
        folder: Where the files lie.
        threads: Chunks read at once.

    Raises:
        CheckpointError: A tensor has an infinite value or a NaN.

    Memory: `threads` chunks.
    """
    scans = (
        Scan(entry.name, folder / file.name, offsets[entry.name] + start, num_bytes, entry.dtype)
        for file in files
        for entry in file.entries
        for start, num_bytes in _split(entry.num_bytes, CHUNK_BYTES)
    )
    buffers = _Buffers()
    _run(lambda scan: _scan_chunk(scan, buffers), scans, threads)


class _Buffers(threading.local):
    """Each thread's own pages: fresh ones per chunk would cost a page fault every 4 KiB."""

    def __init__(self) -> None:
        self.source: NDArray[np.uint8] = np.empty(0, np.uint8)
        self.target: NDArray[np.uint8] = np.empty(0, np.uint8)

    def take_source(self, num_bytes: int) -> NDArray[np.uint8]:
        if len(self.source) < num_bytes:
            self.source = np.empty(num_bytes, np.uint8)
        return self.source[:num_bytes]

    def take_target(self, num_bytes: int) -> NDArray[np.uint8]:
        if len(self.target) < num_bytes:
            self.target = np.empty(num_bytes, np.uint8)
        return self.target[:num_bytes]


def _run(function: Callable[[_Job], None], jobs: Iterator[_Job], threads: int) -> None:
    """Do the jobs on threads, which take them one by one; the first error stops all of them."""
    lock = threading.Lock()
    stopped = threading.Event()

    def work() -> None:
        while not stopped.is_set():
            with lock:
                job = next(jobs, None)
            if job is None:
                return
            try:
                function(job)
            except BaseException:
                stopped.set()
                raise

    with ThreadPoolExecutor(threads, thread_name_prefix="consolidate") as pool:
        try:
            for worker in [pool.submit(work) for _ in range(threads)]:
                worker.result()
        finally:
            stopped.set()  # Ctrl-C arrives here, not in the threads


def _plan_copies(
    tensor: SourceTensor, target: Path, offset: int, target_dtype: str
) -> Iterator[Copy]:
    for piece in tensor.slices:
        item_bytes = ITEM_BYTES[piece.dtype]
        if piece.dtype != target_dtype and not {piece.dtype, target_dtype} <= CASTABLE:
            raise CheckpointError(
                f"{piece.path}: {tensor.name} is {piece.dtype}, which cannot become {target_dtype}"
            )
        # A strided tensor has no consecutive chunks: it is copied whole. Only frozen parameters
        # and buffers can be one, the optimizer's groups are always flat.
        size = piece.numel * item_bytes if piece.strided else CHUNK_BYTES
        for start, num_bytes in _split(piece.numel * item_bytes, size):
            numel = num_bytes // item_bytes
            part = Slice(piece.path, piece.offset + start, numel, piece.dtype, piece.strided)
            yield Copy(part, target, offset, target_dtype)
            offset += numel * ITEM_BYTES[target_dtype]


def _split(total: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, size):
        yield start, min(size, total - start)


def _copy_chunk(copy: Copy, buffers: _Buffers) -> None:
    piece = copy.source
    source = _read_strided(piece.strided) if piece.strided else _read_slice(piece, buffers)
    result = source
    if piece.dtype != copy.target_dtype:
        target = buffers.take_target(piece.numel * ITEM_BYTES[copy.target_dtype])
        result = target.view(CARRIERS[copy.target_dtype])
        cast_into(source, piece.dtype, result, copy.target_dtype)
    descriptor = os.open(copy.target, os.O_WRONLY)
    try:
        write_chunk(descriptor, result.view(np.uint8).data, copy.target_offset)
    finally:
        os.close(descriptor)


def _scan_chunk(scan: Scan, buffers: _Buffers) -> None:
    numel = scan.num_bytes // ITEM_BYTES[scan.dtype]
    values = _read_slice(Slice(scan.path, scan.offset, numel, scan.dtype), buffers)
    if not is_finite(values, scan.dtype):
        overflow = (
            "; the values may be beyond float16's 65,504: export bfloat16 or float32"
            if scan.dtype == "float16"
            else "; the training has diverged: export an earlier checkpoint"
        )
        raise CheckpointError(f"{scan.name} has values that are not finite{overflow}")


def _read_slice(piece: Slice, buffers: _Buffers) -> Raw:
    raw = buffers.take_source(piece.numel * ITEM_BYTES[piece.dtype])
    view = raw.data
    position = piece.offset
    # pread, not mmap: mapped pages would count as our memory until the kernel takes them back.
    descriptor = os.open(piece.path, os.O_RDONLY)
    try:
        while view:
            count = os.preadv(descriptor, [view], position)
            if not count:
                raise CheckpointError(f"{piece.path}: ends at byte {position:,}; it is cut off")
            view, position = view[count:], position + count
    finally:
        os.close(descriptor)
    return raw.view(CARRIERS[piece.dtype])


def _read_strided(ref: TensorRef) -> Raw:
    """Read a tensor whose elements are not in C order, such as a transposed one."""
    item_bytes = ITEM_BYTES[ref.dtype]
    strides = tuple(stride * item_bytes for stride in ref.strides)
    carrier = CARRIERS[ref.dtype]
    span = 1 + sum((n - 1) * step for n, step in zip(ref.shape, ref.strides, strict=True))
    flat = np.fromfile(ref.path, carrier, span, offset=ref.offset)
    strided = np.lib.stride_tricks.as_strided(flat, ref.shape, strides, writeable=False)
    return np.ascontiguousarray(strided).reshape(-1)

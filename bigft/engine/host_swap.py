"""What the optimizer keeps, in files on NVMe: read, stepped and written piece by piece.

    file of piece k+1 --read--> slot      slot of k: stepped      slot of k-1 --write--> its file

A piece is at most 16 million elements, whatever the model is, and three slots are all the memory
that this takes. bf16 weights that DeepSpeed keeps on NVMe are read from its own files and written
back in place. Everything that was written here is checked when it is read.
"""

import contextlib
import ctypes
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bigft.engine.direct_io import ALIGNMENT, Bytes, DirectIO, allocate, round_up
from bigft.engine.swap_verify import GROUP_BYTES, SwapGuard
from bigft.errors import TrainingError
from bigft.optim.code8 import BLOCK
from bigft.optim.host import FlatState, Region

PIECE = 1 << 24
"""Elements."""

_SLOTS = 3
_PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE, too
_DONTNEED = 4


@dataclass(frozen=True)
class FileRange:
    """Where the weights of a region are in a file of DeepSpeed's."""

    path: Path
    position: int
    """Byte."""
    num_bytes: int
    """At the end of a file also its padding."""


Weights = Tensor | FileRange
"""Of one region: `(n,)` in host memory, or in a file."""


@dataclass
class _Piece:
    state: FlatState
    weights: Sequence[Weights]
    path: Path
    exists: bool = False
    reads: "list[Future[None]]" = field(default_factory=list)
    slot: "_Slot | None" = None

    @property
    def num_bytes(self) -> int:
        """Memory that it needs in a slot."""
        ranges = [own for own in self.weights if isinstance(own, FileRange)]
        return round_up(self.state.num_bytes) + sum(round_up(one.num_bytes) for one in ranges)


@dataclass
class _Slot:
    memory: Bytes
    writes: "list[Future[None]]" = field(default_factory=list)


def cut_region(region: Region, element_size: int) -> list[Region]:
    """Cut a region into pieces of at most `PIECE` elements where that is possible.

    Blocks of 8-bit moments stay whole, and so do groups of what `SwapGuard` compares; a region
    that begins inside a block stays in one piece.
    """
    grain = GROUP_BYTES // element_size
    assert PIECE % grain == 0 == grain % BLOCK
    if region.start % BLOCK or region.numel <= PIECE:
        return [region]
    # The last piece is not much smaller than the others.
    count = -(-region.numel // PIECE)
    size = -(-region.numel // (count * grain)) * grain
    return [
        replace(
            region,
            start=region.start + at,
            offset=region.offset + at,
            numel=min(size, region.numel - at),
        )
        for at in range(0, region.numel, size)
    ]


class HostSwap:
    """The pieces of one rank, in the order in which they are stepped."""

    def __init__(self, folder: Path) -> None:
        """Take a folder that is this rank's own."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.guard: SwapGuard | None = None
        """Told of failures, and of what is written to DeepSpeed's files."""
        self.io = DirectIO()
        self._pieces: dict[int, _Piece] = {}
        self._next: dict[int, _Piece] = {}
        self._free: list[_Slot] = []
        self._writing: deque[_Slot] = deque()
        self._num_slots = 0
        self._mappings: list[tuple[int, int, Path, int]] = []

    def add(self, state: FlatState, weights: Sequence[Weights]) -> None:
        """Take the next piece; its moments are zero until it has been opened."""
        path = self.folder / f"piece_{len(self._pieces):05d}.swp"
        if self._pieces:
            self._next[next(reversed(self._pieces))] = piece = _Piece(state, weights, path)
        else:
            piece = _Piece(state, weights, path)
        self._pieces[id(state)] = piece

    @property
    def num_bytes(self) -> int:
        """Of all files of its own."""
        return sum(round_up(piece.state.num_bytes) for piece in self._pieces.values())

    def reserve(self) -> None:
        """Take the disk space of all files.

        Raises:
            OSError: It is not there.
        """
        for piece in self._pieces.values():
            descriptor = os.open(piece.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, round_up(piece.state.num_bytes))
            finally:
                os.close(descriptor)

    @contextlib.contextmanager
    def opened(self, state: FlatState) -> Iterator[None]:
        """Have a piece in memory; what it is at the end is written."""
        piece = self._pieces[id(state)]
        self._begin_reading(piece)
        self._finish(piece.reads)
        if not piece.exists:
            state.reset()
        following = self._next.get(id(state))
        if following is not None:
            self._begin_reading(following)
        yield
        self._begin_writing(piece)

    def drain(self) -> None:
        """Wait until everything is written."""
        while self._writing:
            self._reclaim()

    def _begin_reading(self, piece: _Piece) -> None:
        if piece.slot is not None:
            return
        piece.slot = self._take_slot()
        kept, views = self._lay_out(piece, piece.slot)
        if piece.exists:
            piece.reads += self.io.read(piece.path, 0, kept)
        for own, view in zip(piece.weights, views, strict=True):
            if isinstance(own, FileRange):
                piece.reads += self.io.read(own.path, own.position, view)
        self._attach(piece, kept, views)

    def _begin_writing(self, piece: _Piece) -> None:
        slot = piece.slot
        assert slot is not None, "it has been opened"
        kept, views = self._lay_out(piece, slot)
        slot.writes = self.io.write(piece.path, 0, kept)
        for own, view in zip(piece.weights, views, strict=True):
            if isinstance(own, FileRange):
                if self.guard is not None:
                    self.guard.wrote_range(str(own.path), own.position, view)
                slot.writes += self.io.write(own.path, own.position, view)
        piece.exists, piece.slot = True, None
        piece.state.detach()
        self._writing.append(slot)

    def _lay_out(self, piece: _Piece, slot: _Slot) -> tuple[Bytes, list[Bytes]]:
        """Give each file its place in a slot."""
        end = round_up(piece.state.num_bytes)
        kept, views = slot.memory[:end], []
        for own in piece.weights:
            size = own.num_bytes if isinstance(own, FileRange) else 0
            views.append(slot.memory[end : end + size])
            end += round_up(size)
        return kept, views

    def _attach(self, piece: _Piece, kept: Bytes, views: Sequence[Bytes]) -> None:
        state, weights = piece.state, []
        for own, view, region in zip(piece.weights, views, state.regions, strict=True):
            read = torch.from_numpy(view).view(state.dtype)[: region.numel] if len(view) else own
            assert isinstance(read, Tensor)
            weights.append(read)
        state.attach(weights, torch.from_numpy(kept)[: state.num_bytes])

    def _take_slot(self) -> _Slot:
        if not self._free and self._num_slots < _SLOTS:
            self._num_slots += 1
            size = max(piece.num_bytes for piece in self._pieces.values())
            self._free.append(_Slot(allocate(size)))
        if not self._free:
            self._reclaim()
        return self._free.pop()

    def _reclaim(self) -> None:
        slot = self._writing.popleft()
        self._finish(slot.writes)
        self._free.append(slot)

    def _finish(self, futures: "list[Future[None]]") -> None:
        """Wait for all; a failure ends the run at the end of the step, on all ranks alike."""
        for future in futures:
            try:
                future.result()
            except OSError as error:
                text = f"{error.filename}: {error.strerror}; the NVMe disk is full or failing"
                if self.guard is None:
                    raise TrainingError(text) from error
                self.guard.fail(text)
        futures.clear()

    # For checkpoints.

    def find_damage(self) -> str | None:
        """Read everything once and say what is wrong with the first damaged file."""
        self.drain()
        for piece in self._pieces.values():
            self._begin_reading(piece)
            slot, piece.slot = piece.slot, None
            assert slot is not None
            piece.state.detach()
            try:
                for future in piece.reads:
                    future.result()
            except OSError as error:
                return f"{error.filename}: {error.strerror}"
            finally:
                wait(piece.reads)
                piece.reads.clear()
                self._free.append(slot)
        return None

    @contextlib.contextmanager
    def mapped(self) -> Iterator[None]:
        """Let every piece read its files inside the block, without memory of its own."""
        self.drain()
        for piece in self._pieces.values():
            state = piece.state
            # Untouched anonymous memory reads as zeros and takes none.
            kept = self._map(piece.path, 0, state.num_bytes) if piece.exists else None
            weights = [
                self._map(own.path, own.position, own.num_bytes).view(state.dtype)[: region.numel]
                if isinstance(own, FileRange)
                else own
                for own, region in zip(piece.weights, state.regions, strict=True)
            ]
            fresh = torch.from_numpy(allocate(state.num_bytes))
            state.attach(weights, fresh if kept is None else kept)
        try:
            yield
        finally:
            self._mappings.clear()
            for piece in self._pieces.values():
                piece.state.detach()

    def forget(self, part: Tensor) -> None:
        """Take the pages of a mapped tensor out of memory, once it has been read."""
        if self._find_file(part) is not None:
            # Of a page that another tensor shares, nothing is lost: it is read again.
            _libc().madvise(
                ctypes.c_void_p(part.data_ptr() // ALIGNMENT * ALIGNMENT),
                ctypes.c_size_t(round_up(part.numel() * part.element_size())),
                _DONTNEED,
            )

    def release(self, part: Tensor) -> None:
        """Give the disk space of a mapped tensor back as well, once it has been saved elsewhere."""
        self.forget(part)
        if (found := self._find_file(part)) is not None:
            _punch_hole(*found, part.numel() * part.element_size())

    def _find_file(self, part: Tensor) -> tuple[Path, int] | None:
        start, size = part.data_ptr(), part.numel() * part.element_size()
        for first, end, path, position in self._mappings:
            if first <= start and start + size <= end:
                return path, position + start - first
        return None

    def _map(self, path: Path, position: int, size: int) -> Tensor:
        # Private and writable, which torch wants; nobody writes.
        mapping = np.memmap(path, np.uint8, "c", offset=position, shape=(size,))
        first = mapping.ctypes.data
        self._mappings.append((first, first + size, path, position))
        return torch.from_numpy(mapping)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _punch_hole(path: Path, position: int, size: int) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        # Where the file system cannot, the space comes back when the run ends.
        _libc().fallocate(descriptor, _PUNCH_HOLE, ctypes.c_int64(position), ctypes.c_int64(size))
        # ext4 gives blocks to others only once it is on disk that they are free.
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

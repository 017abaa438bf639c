"""What DeepSpeed writes to NVMe is given its space first, and is compared when it is read.

DeepSpeed 0.19.8 counts the completions of its asynchronous I/O but never looks at their results:
a write that failed because the disk is full or broken counts as done, and the next step trains on
what was there before. Here every handle for such I/O is wrapped. A write leaves a fingerprint of
the buffer in memory; a read is held against it. What differs ends the run on all ranks at the end
of the step, before anything is saved.

The fingerprint looks at one line of 64 bytes in every block of 4 KiB, another one in each, and at
the whole tail: a 64th of the memory traffic. A write that was lost or went to the wrong place
changes whole blocks, so it is found; a single flipped bit is found in one of 64 cases.
"""

import contextlib
import logging
import os
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bigft.distributed.collectives import raise_first
from bigft.errors import BigftError, PlanError, TrainingError
from bigft.units import format_bytes

logger = logging.getLogger(__name__)

Fingerprint = npt.NDArray[np.uint64]

_BLOCK = 4096
_WORDS = 8
"""8 bytes each, in a line of 64 bytes."""

_LINES = _BLOCK // 64
_GROUP = 64
"""Blocks whose hashes are added up: 8 bytes are kept per 256 KiB."""

GROUP_BYTES = _BLOCK * _GROUP
"""What is compared as one."""

_RESERVE = "reserve.swp"

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.array([2 * n + 1 for n in range(_WORDS)], np.uint64) * _GOLDEN
"""Odd, so that a change of one word always changes the sum."""


def compute_fingerprint(data: npt.NDArray[np.uint8], first: int = 0) -> Fingerprint:
    """Compute hashes of samples of a buffer: one per 256 KiB, and one of what is left over.

    Args:
        data: `(N,)`.
        first: 4 KiB blocks of the file that lie before it.
    """
    count = len(data) // _BLOCK
    blocks = data[: count * _BLOCK].view(np.uint64).reshape(count, _LINES, _WORDS)
    lines = blocks[np.arange(count), _choose_lines(first, count)]
    hashes = (lines * _MIX).sum(axis=1, dtype=np.uint64)
    # Blocks in another order must not add up to the same.
    hashes = (hashes ^ (hashes >> np.uint64(29))) * (
        np.arange(first, first + count, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    )
    groups = np.add.reduceat(hashes, np.arange(0, count, _GROUP)) if count else hashes
    tail = zlib.crc32(data[max(count * _BLOCK - 64, 0) :].tobytes())
    return np.append(groups, np.uint64(tail))


@lru_cache(maxsize=16)
def _choose_lines(first: int, count: int) -> npt.NDArray[np.int64]:
    """Choose a line of each block: not the same, or a column of a matrix would be all it sees."""
    lines = (np.arange(first, first + count, dtype=np.uint64) * _GOLDEN) >> np.uint64(58)
    return lines.astype(np.int64)


class SwapGuard:
    """What this rank has written to its swap files, and what went wrong with them."""

    def __init__(self) -> None:
        """Know no file yet."""
        self._written: dict[str, tuple[int, Fingerprint]] = {}
        self._failures: list[str] = []
        self._reserve: Path | None = None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Wrap every handle for asynchronous I/O that DeepSpeed makes inside the block.

        And let it read no parameter twice at once: where one comes twice in what its prefetcher
        looks ahead, as the last layer's do under activation checkpointing, 0.19.8 asks for both
        and fails ("already assigned swap buffer").
        """
        from deepspeed.ops.op_builder import AsyncIOBuilder
        from deepspeed.runtime.swap_tensor.partitioned_param_swapper import (
            AsyncPartitionedParameterSwapper as Swapper,
        )

        load, swap_in = AsyncIOBuilder.load, Swapper.swap_in

        def load_wrapped(builder: Any, *args: Any, **kwargs: Any) -> Any:
            return _Operator(load(builder, *args, **kwargs), self)

        def swap_in_once(swapper: Any, params: list[Any], *args: Any, **named: Any) -> None:
            swap_in(swapper, list({p.ds_id: p for p in params}.values()), *args, **named)

        AsyncIOBuilder.load, Swapper.swap_in = load_wrapped, swap_in_once
        try:
            yield
        finally:
            AsyncIOBuilder.load, Swapper.swap_in = load, swap_in

    def reserve(self, engine: Any, num_states: int) -> None:
        """Take the disk space of the files that the first step will make.

        Args:
            engine: The DeepSpeed engine.
            num_states: fp32 numbers that the optimizer keeps per parameter.

        Raises:
            PlanError: It is not there.
        """
        swapper = getattr(engine.optimizer, "optimizer_swapper", None)
        if swapper is None:
            return
        folder = Path(swapper.swap_folder)
        tensors = 2 + num_states  # the master weight and the gradient
        needed = sum(
            4 * tensors * swapper._io_aligned_numel(info.numel())
            for info in swapper.swap_params_info.values()
        )
        needed -= sum(file.stat().st_size for file in folder.iterdir())
        if needed <= 0:
            return
        try:
            _allocate(folder / _RESERVE, needed)
        except OSError as error:
            (folder / _RESERVE).unlink(missing_ok=True)
            raise PlanError(
                f"{folder}: {format_bytes(needed)} more are needed for the optimizer's swap files,"
                f" and cannot be had ({error.strerror}); free some space, name a larger disk with"
                " nvme_path, or offload to host memory with ds_configs/zero3_offload.json"
            ) from error
        self._reserve = folder / _RESERVE

    def check(self, kind: type[BigftError] = TrainingError) -> None:
        """End the run if a swap file of any rank could not be written, or was not what was written.

        Args:
            kind: The class of the error.

        Raises:
            BigftError: Of that class, on all ranks alike.

        Collective: every rank.
        """
        error = None
        if self._failures:
            more = f" (and {len(self._failures) - 1} more)" if len(self._failures) > 1 else ""
            error = kind(
                f"{self._failures[0]}{more}. Nothing of this step is saved; look at the disk"
                " (dmesg, smartctl, df), then run the same command again: it goes on from the"
                " newest checkpoint"
            )
        raise_first(error)

    def find_damage(self, paths: Iterable[str]) -> str | None:
        """Compare whole swap files with what was written to them, before they are saved.

        Args:
            paths: As they were written; reads the files once.

        Returns:
            What is wrong with the first damaged one.
        """
        for path in paths:
            wanted, size = self._written.get(path, (0, None))[0], _measure(path)
            if size < wanted:
                return _describe_short(path, size, wanted)
            wrong = self.compare(path, np.memmap(path, np.uint8, "r")[:wanted]) if wanted else None
            if wrong is not None:
                return wrong
        return None

    # For the handles.

    def compare(self, path: str, data: npt.NDArray[np.uint8]) -> str | None:
        """Compare what was read of a file, from its beginning on, with what was written there.

        Returns:
            What is wrong; None if nothing is, or if the file was never written through here.
        """
        if path not in self._written:
            return None
        size, expected = self._written[path]
        found = compute_fingerprint(data)
        if len(data) == size:
            is_same = np.array_equal(found, expected)
        else:
            # The beginning of a file: groups that are complete in both.
            count = len(data) // (_BLOCK * _GROUP)
            is_same = np.array_equal(found[:count], expected[:count])
        if is_same:
            return None
        return f"{path}: what was read is not what was written; the NVMe disk has lost a write"

    def wrote(self, path: str, buffer: Tensor) -> None:
        """Note what is about to be written, and give a new file its space."""
        data = _as_bytes(buffer)
        if path not in self._written:
            self._make(path, len(data))
        self._written[path] = (len(data), compute_fingerprint(data))

    def wrote_range(self, path: str, position: int, data: npt.NDArray[np.uint8]) -> None:
        """Note what is about to be written in place, by others than the handles.

        Args:
            path: A file that was written through them.
            position: A multiple of `GROUP_BYTES`.
            data: `(N,)`: whole groups, or all up to the file's end.
        """
        if path not in self._written:
            return
        size, before = self._written[path]
        found = compute_fingerprint(data, position // _BLOCK)
        at, is_end = position // GROUP_BYTES, position + len(data) == size
        assert is_end or len(data) % GROUP_BYTES == 0
        after = before.copy()
        count = len(found) if is_end else len(found) - 1
        after[at : at + count] = found[:count]
        self._written[path] = size, after

    def fail(self, text: str) -> None:
        """Note what went wrong; the run ends at the next `check`."""
        logger.error("%s", text)
        self._failures.append(text)

    def _make(self, path: str, size: int) -> None:
        try:
            if self._reserve is not None:
                left = max(self._reserve.stat().st_size - size, 0)
                os.truncate(self._reserve, left)
            _allocate(Path(path), size)
        except OSError as error:
            self.fail(f"{path}: no space for {format_bytes(size)} ({error.strerror})")


class _Operator:
    """DeepSpeed's loaded operator, whose handles are wrapped."""

    def __init__(self, inner: Any, guard: SwapGuard) -> None:
        self._inner = inner
        self._guard = guard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def aio_handle(self, *args: Any, **kwargs: Any) -> Any:
        return _Handle(self._inner.aio_handle(*args, **kwargs), self._guard)


class _Handle:
    """A handle for asynchronous reads and writes of whole files."""

    def __init__(self, inner: Any, guard: SwapGuard) -> None:
        self._inner = inner
        self._guard = guard
        self._reads: list[tuple[str, Tensor]] = []
        self._submitted = self._left_out = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def async_pwrite(self, buffer: Tensor, path: str, offset: int) -> int:
        self._guard.wrote(path, buffer)
        if self._inner.async_pwrite(buffer, path, offset) == 0:
            self._submitted += 1
        else:
            self._left_out += 1
            self._guard.fail(f"{path}: cannot be written; the NVMe disk is failing or read-only")
        return 0

    def async_pread(self, buffer: Tensor, path: str, offset: int) -> int:
        needed, size = buffer.numel() * buffer.element_size(), _measure(path)
        if size < needed:
            # DeepSpeed would abort the process here, or read nothing, depending on its compiler.
            self._guard.fail(_describe_short(path, size, needed))
        elif self._inner.async_pread(buffer, path, offset) != 0:
            self._guard.fail(f"{path}: cannot be read; the NVMe disk is failing")
        else:
            self._submitted += 1
            self._reads.append((path, buffer))
            return 0
        self._left_out += 1
        return 0

    def wait(self) -> int:
        count = int(self._inner.wait()) if self._submitted else 0
        for path, buffer in self._reads:
            wrong = self._guard.compare(path, _as_bytes(buffer))
            if wrong is not None:
                self._guard.fail(wrong)
        count += self._left_out
        self._reads, self._submitted, self._left_out = [], 0, 0
        return count


def _as_bytes(buffer: Tensor) -> npt.NDArray[np.uint8]:
    found: npt.NDArray[np.uint8] = buffer.detach().view(-1).view(torch.uint8).numpy()
    return found


def _describe_short(path: str, size: int, wanted: int) -> str:
    return (
        f"{path}: has {size:,} bytes, {wanted:,} were written; the NVMe disk is full or failing, or"
        " somebody has changed the file"
    )


def _measure(path: str) -> int:
    return Path(path).stat().st_size if Path(path).is_file() else 0


def _allocate(path: Path, size: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)

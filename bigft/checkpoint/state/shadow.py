"""A second set of fp32 weights beside those that are trained: averages, starting points.

Each rank has its own part of the weights, and its own part of the shadow, in host memory, whatever
DeepSpeed or a `HostAdamW` keeps the weights in: flat fp32 vectors on any device, or bf16 numbers
and what makes them fp32 ones. Both are walked in pieces that stay in the processor's cache.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigft.checkpoint.state.collect import SHADOW, Entry
from bigft.checkpoint.state.fragments import Flat
from bigft.checkpoint.state.partition import open_partition
from bigft.checkpoint.state.read import StateReader
from bigft.errors import ConfigError
from bigft.optim.host import HostAdamW
from bigft.optim.reference import split

_CHUNK = 1 << 18
"""Elements: 1 MiB of each vector."""


@dataclass(frozen=True)
class _Part:
    """What this rank has of one parameter, and its shadow."""

    parameter: str
    start: int
    """Its first element in the flattened parameter."""
    weights: Tensor
    """`(n,)`, a view of what is trained: fp32, or bf16 with a `rest`."""
    rest: Tensor
    """`(n,)`, int16 or int8; `(0,)` of fp32 weights."""
    shadow: Tensor
    """`(n,)`, fp32, in host memory."""


class Shadow:
    """This rank's part of it; begins as a copy of the weights."""

    def __init__(self, engine: Any) -> None:
        """Find the weights of a DeepSpeed engine whose states are not on NVMe.

        Raises:
            ConfigError: They are kept in fewer bits than fp32 and cannot be put back exactly.

        Memory: 4 bytes for each parameter of this rank's part.
        """
        self._partition = open_partition(engine)
        self._inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
        found = [list(self._find(flat)) for flat in self._partition.flats]
        self.numel = sum(len(weights) for rows in found for _, _, weights, _ in rows)
        values = torch.empty(self.numel)
        self._parts: list[list[_Part]] = []
        """Of each flat vector."""
        at = 0
        for rows in found:
            parts = []
            for name, start, weights, rest in rows:
                parts.append(_Part(name, start, weights, rest, values[at : at + len(weights)]))
                at += len(weights)
            self._parts.append(parts)
        _copy(part for parts in self._parts for part in parts)

    def _find(self, flat: Flat) -> Iterator[tuple[str, int, Tensor, Tensor]]:
        if isinstance(self._inner, HostAdamW):
            for kept in (one for state in self._inner.find(flat.tensor) for one in state.rows):
                yield kept.region.parameter, kept.region.start, kept.weights, kept.rest
            return
        row = flat.tensor.data.view(-1)
        if row.dtype != torch.float32:
            raise ConfigError(
                f"--trainer.ema, --trainer.reptile: DeepSpeed keeps the weights of this run as"
                f" {row.dtype} alone, which cannot hold an average; drop"
                " bf16.bf16_master_weights_and_grads from the DeepSpeed JSON, or leave the setting"
                " out"
            )
        nothing = torch.empty(0, dtype=torch.int16)
        for fragment in flat.fragments:
            yield fragment.parameter, fragment.start, row[fragment.place], nothing

    @torch.no_grad()
    def approach(self, share: float) -> None:
        """Go a share of the way from here to the weights."""
        for part, place in _cut(part for parts in self._parts for part in parts):
            part.shadow[place].lerp_(_read(part, place), share)

    @torch.no_grad()
    def impose(self) -> None:
        """Make the weights what this is. Collective: every rank.

        Of weights with 24 bits, this is rounded to them.
        """
        for number, parts in enumerate(self._parts):
            with self._partition.writable(number):
                for part, place in _cut(parts):
                    _write(part, place, part.shadow[place])
                    part.shadow[place].copy_(_read(part, place))
        self._partition.finish()

    @torch.no_grad()
    def exchange(self) -> None:
        """Make the weights what this is, and this what they were. Collective: every rank.

        Done twice, everything is bit for bit as before. What does not fit into weights of 24 bits,
        the lowest eight, stays here meanwhile, in the place of those that such weights have not.
        """
        for number, parts in enumerate(self._parts):
            with self._partition.writable(number):
                for part, place in _cut(parts):
                    _exchange(part, place)
        self._partition.finish()

    def collect(self) -> list[Entry]:
        """List what a checkpoint keeps of it: views."""
        return [
            Entry(SHADOW, part.parameter, part.start, (part.shadow,))
            for parts in self._parts
            for part in parts
        ]

    def fill(self, reader: StateReader) -> None:
        """Take over what a checkpoint has, or else the weights, once these are filled in."""
        for part in (part for parts in self._parts for part in parts):
            if reader.has(SHADOW, part.parameter):
                reader.fill(SHADOW, part.parameter, part.start, part.shadow)
            else:
                _copy([part])


def _copy(parts: Iterable[_Part]) -> None:
    """Make the shadow what the weights are."""
    for part, place in _cut(parts):
        part.shadow[place].copy_(_read(part, place))


def _cut(parts: Iterable[_Part]) -> Iterator[tuple[_Part, slice]]:
    for part in parts:
        for low in range(0, len(part.shadow), _CHUNK):
            yield part, slice(low, min(low + _CHUNK, len(part.shadow)))


def _read(part: _Part, place: slice) -> Tensor:
    """Read weights as fp32 numbers in host memory, `(n,)`; maybe a view."""
    weights = part.weights[place]
    if not len(part.rest):
        return weights.detach().cpu()
    # As `bigft.optim.reference.join`, on all cores: the upper halves become fp32 numbers first.
    rest = part.rest[place].int()
    lower = rest << 8 if part.rest.dtype == torch.int8 else rest
    return (weights.float().view(torch.int32) + lower).view(torch.float32)


def _write(part: _Part, place: slice, values: Tensor) -> None:
    """Make weights what fp32 numbers say, `(n,)`."""
    if not len(part.rest):
        part.weights[place].copy_(values)
        return
    upper, rest = split(values.numpy(), part.rest.element_size() * 8)
    part.weights[place].view(torch.int16).copy_(torch.from_numpy(upper.view(np.int16)))
    part.rest[place].copy_(torch.from_numpy(rest))


def _exchange(part: _Part, place: slice) -> None:
    bits = part.shadow[place].view(torch.int32)
    kept = (bits << 24) >> 24 if part.rest.dtype == torch.int8 else torch.zeros_like(bits)
    before = _read(part, place).view(torch.int32) + kept
    _write(part, place, (bits - kept).view(torch.float32))
    bits.copy_(before)

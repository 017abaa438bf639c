"""AdamW whose weights, gradients and moments are in host memory: one native pass per step.

A weight is a bf16 number, which the model computes with, and 16 further bits that make it an fp32
number: no second copy exists. Both moments are 8-bit codes in blocks of 256 elements of one
parameter, or fp32 numbers, as those of norms and biases always are.

Bytes per parameter: 2 (bf16) + 2 (remainder, 1 by choice) + 2.03 (moments; 8 in fp32), beside 2 of
a bf16 gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigft.optim.code8 import BLOCK, signed_code, unsigned_code
from bigft.optim.native.binding import PART, load_native, number_blocks, pack_groups
from bigft.optim.reference import Rates, count_blocks

_GRADIENTS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True)
class Region:
    """A run of consecutive elements of one flattened parameter, inside a flat vector."""

    parameter: str
    start: int
    """Its first element in the flattened parameter."""
    numel: int
    offset: int
    """Its first element in the flat vector."""
    is_coded: bool
    """Whether its moments are 8-bit codes."""

    @property
    def phase(self) -> int:
        """Elements of its first block that lie before it."""
        return self.start % BLOCK

    @property
    def place(self) -> slice:
        """Where it lies in the flat vector."""
        return slice(self.offset, self.offset + self.numel)


class FlatState:
    """Everything that one flat vector keeps beside its weights and its gradient.

    All of it lies in one run of bytes, so that it can be moved as a whole: `attach` says where the
    weights and these bytes are now.
    """

    def __init__(
        self, dtype: torch.dtype, numel: int, regions: Sequence[Region], *, rest_bits: int = 16
    ) -> None:
        """Lay it out.

        Args:
            dtype: Of the weights: bf16 or fp32.
            numel: N, elements of the vector.
            regions: What lies in it; the rest is padding.
            rest_bits: Of what makes a bf16 weight an fp32 number: 16 for all of it, 8 for a number
                of 24 bits.
        """
        self.dtype = dtype
        self.numel = numel
        self.regions = tuple(regions)
        self.gradient: Tensor | None = None
        """`(N,)`, bf16 or fp32, in host memory; set before the first step."""
        self.step = 0
        self.is_split = dtype == torch.bfloat16
        self.rest_bits = rest_bits if self.is_split else 0
        coded = [region for region in regions if region.is_coded]
        plain = sum(region.numel for region in regions if not region.is_coded)
        blocks = sum(count_blocks(region.numel, region.phase) for region in coded)
        codes = sum(region.numel for region in coded)
        kept = [(torch.float32, blocks), (torch.float32, plain), (torch.uint8, codes)]
        rest = torch.int8 if self.rest_bits == 8 else torch.int16
        # Widest first, so that each is aligned.
        self._pieces = [
            *(piece for piece in kept[:2] for _ in range(2)),
            (rest, numel if self.is_split else 0),
            *(kept[2],) * 2,
        ]
        self.num_bytes = sum(dtype.itemsize * size for dtype, size in self._pieces)
        """Of what is kept."""

    def attach(self, weights: Tensor, kept: Tensor | None = None) -> None:
        """Say where it is.

        Args:
            weights: `(N,)`, contiguous, in host memory.
            kept: `(num_bytes,)`, uint8, contiguous; absent: made anew, all moments zero.
        """
        self.weights = weights
        is_new = kept is None
        kept = torch.zeros(self.num_bytes, dtype=torch.uint8) if kept is None else kept
        self.kept = kept
        views, offset = [], 0
        for dtype, size in self._pieces:
            end = offset + dtype.itemsize * size
            views.append(kept[offset:end].view(dtype))
            offset = end
        self._scales, self._plain = views[0:2], views[2:4]
        self.rest, self._codes = views[4], views[5:7]
        if is_new:
            self.reset()
        self._parts = self._lay_out()

    def reset(self) -> None:
        """Make all moments zero, and the weights what their bf16 numbers are."""
        self.kept.zero_()
        for codes, code in zip(self._codes, (signed_code(), unsigned_code()), strict=True):
            codes.fill_(code.zero)

    def list_moments(self) -> list[Tensor]:
        """Return codes, scales and fp32 moments."""
        return [*self._codes, *self._scales, *self._plain]

    @property
    def moment_bytes(self) -> int:
        """Size of the moments and their scales, wherever they are."""
        rest, size = self._pieces[4]
        return self.num_bytes - rest.itemsize * size

    def weights_of(self, region: Region) -> Tensor:
        """Return a view of a region's weights."""
        return self.weights.detach()[region.place]

    def moments(self, number: int) -> Iterator[tuple[Region, Tensor, Tensor | None]]:
        """Go through the first (1) or second (2) moments.

        Args:
            number: 1 or 2.

        Yields:
            Each region with a view of its codes, `(n,)` uint8, and one of its blocks' scales; or
            with a view of its fp32 numbers, and None.
        """
        code_at = block_at = plain_at = 0
        for region in self.regions:
            if region.is_coded:
                blocks = count_blocks(region.numel, region.phase)
                codes = self._codes[number - 1][code_at : code_at + region.numel]
                yield region, codes, self._scales[number - 1][block_at : block_at + blocks]
                code_at += region.numel
                block_at += blocks
            else:
                yield region, self._plain[number - 1][plain_at : plain_at + region.numel], None
                plain_at += region.numel

    def _lay_out(self) -> Any:
        """Describe the regions to the native step; addresses stay valid as long as this lives."""
        parts = np.zeros(len(self.regions), PART)
        size = self.weights.element_size()
        for number in (1, 2):
            for row, (region, values, scales) in zip(parts, self.moments(number), strict=True):
                row["size"], row["phase"] = region.numel, region.phase
                row["weights"] = self.weights.data_ptr() + region.offset * size
                if self.is_split:
                    row["rest"] = self.rest.data_ptr() + region.offset * self.rest.element_size()
                row[f"moment{number}"] = values.data_ptr()
                if scales is not None:
                    row[f"scale{number}"] = scales.data_ptr()
        number_blocks(parts)
        return parts

    def update(self, rates: Rates, scale: float, threads: int) -> int:
        """Take one step; returns how many gradients were not finite."""
        gradient = self.gradient
        assert gradient is not None, "the vector has been laid out without a gradient"
        size = gradient.element_size()
        self._parts["gradients"] = [
            gradient.data_ptr() + region.offset * size for region in self.regions
        ]
        return load_native().step(
            self._parts,
            pack_groups([rates]),
            weights=f"split_{self.rest_bits}" if self.is_split else "fp32",
            gradients=_GRADIENTS[gradient.dtype],
            scale=scale,
            threads=threads,
        )


class HostAdamW(torch.optim.Optimizer):
    """AdamW over flat vectors in host memory, moments in 8 bits or in fp32.

    `lay_out` says what lies in a vector before its first step. The weights' fp32 values exist only
    as their two halves: `join` and `split` of `bigft.optim.reference`.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        moment_bits: int = 8,
        rest_bits: int = 16,
    ) -> None:
        """Take parameter groups with their `weight_decay`.

        Args:
            groups: `moment_bits` of a group takes precedence.
            lr: Learning rate.
            betas: Decay rates of the moments.
            eps: Added to the root of the second moment.
            moment_bits: 8 or 32; those of norms and biases are always fp32 numbers.
            rest_bits: 16 or 8, kept of each bf16 weight beside it.

        Raises:
            LaunchError: The native step is not there and cannot be built.
        """
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0}
        super().__init__(groups, {**defaults, "moment_bits": moment_bits})
        self.rest_bits = rest_bits
        self.isa = load_native().isa
        self.scale = 1.0
        """Gradients are multiplied by it: unscales and clips."""
        self._flats: dict[int, FlatState] = {}

    @property
    def flat_states(self) -> list[FlatState]:
        """What is kept of all vectors, in the order in which they were laid out."""
        return list(self._flats.values())

    def lay_out(self, flat: Tensor, regions: Sequence[Region]) -> FlatState:
        """Say what lies in a flat vector; it has to live as long as this optimizer."""
        found = FlatState(flat.dtype, flat.numel(), regions, rest_bits=self.rest_bits)
        found.attach(flat.data)
        self._flats[id(flat)] = found
        return found

    def find(self, flat: Tensor) -> FlatState:
        """Return what is kept of a vector."""
        return self._flats[id(flat)]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all vectors that the groups hold now, from their gradients."""
        assert closure is None, "ZeRO has the gradients already"
        for group in self.param_groups:
            for flat in group["params"]:
                state = self.find(flat)
                state.step += 1
                rates = Rates(
                    float(group["lr"]),
                    (float(group["betas"][0]), float(group["betas"][1])),
                    float(group["eps"]),
                    float(group["weight_decay"]),
                    state.step,
                )
                state.update(rates, self.scale, torch.get_num_threads())

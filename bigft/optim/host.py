"""AdamW whose weights, gradients and moments are in host memory: one native pass per step.

A weight is a bf16 number, which the model computes with, and 16 further bits that make it an fp32
number: no second copy exists. Both moments are 8-bit codes in blocks of 256 elements of one
parameter, or fp32 numbers, as those of norms and biases always are.

Bytes per parameter: 2 (bf16) + 2 (remainder, 1 by choice) + 2.03 (moments; 8 in fp32), beside 2 of
a bf16 gradient.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
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


@dataclass(frozen=True)
class Kept:
    """Views of everything that there is of one region, but for its gradient."""

    region: Region
    weights: Tensor
    """`(n,)`, bf16 or fp32."""
    rest: Tensor
    """`(n,)`, int16 or int8; `(0,)` of fp32 weights."""
    moments: tuple[Tensor, Tensor]
    """`(n,)` each: codes, uint8, or fp32 numbers."""
    scales: tuple[Tensor, Tensor] | None
    """`(blocks,)` each, fp32; None where moments are fp32 numbers."""


class FlatState:
    """Everything that is kept of regions of a flat vector beside their weights and gradients.

    All of it lies in one run of bytes, so that it can be moved as a whole: `attach` says where
    these and the weights are now.
    """

    def __init__(
        self, dtype: torch.dtype, regions: Sequence[Region], *, rest_bits: int = 16
    ) -> None:
        """Lay it out.

        Args:
            dtype: Of the weights: bf16 or fp32.
            regions: What it is kept of.
            rest_bits: Of what makes a bf16 weight an fp32 number: 16 for all of it, 8 for a number
                of 24 bits.
        """
        self.dtype = dtype
        self.regions = tuple(regions)
        self.numel = sum(region.numel for region in regions)
        self.gradient: Tensor | None = None
        """The whole vector's, bf16 or fp32, in host memory; set before the first step."""
        self.step = 0
        self.rows: list[Kept] = []
        """Where everything is, region by region; empty while it is nowhere in memory."""
        self.is_split = dtype == torch.bfloat16
        self.rest_bits = rest_bits if self.is_split else 0
        self.num_bytes, self._places = self._lay_out()

    def _lay_out(self) -> tuple[int, list[list[tuple[int, int, torch.dtype]]]]:
        """Give every piece of every region its place, widest first, so that each is aligned."""
        rest = {0: torch.float32, 8: torch.int8, 16: torch.int16}[self.rest_bits]
        wanted = []
        for row, region in enumerate(self.regions):
            blocks = count_blocks(region.numel, region.phase) if region.is_coded else 0
            moments = torch.uint8 if region.is_coded else torch.float32
            wanted += [(row, n, blocks, torch.float32) for n in (0, 1)]
            wanted += [(row, n, region.numel, moments) for n in (2, 3)]
            wanted.append((row, 4, region.numel if self.is_split else 0, rest))
        wanted.sort(key=lambda piece: -piece[3].itemsize)
        offset, places = 0, [[(0, 0, torch.uint8)] * 5 for _ in self.regions]
        for row, piece, numel, dtype in wanted:
            end = offset + numel * dtype.itemsize
            places[row][piece] = offset, end, dtype
            offset = end
        return offset, places

    def attach(self, weights: Sequence[Tensor], kept: Tensor) -> None:
        """Say where it is.

        Args:
            weights: Of each region, `(n,)`, contiguous, in host memory.
            kept: `(num_bytes,)`, uint8, contiguous.
        """
        self.kept = kept
        self.rows = []
        for region, own, places in zip(self.regions, weights, self._places, strict=True):
            assert own.numel() == region.numel, "the native step goes by the region"
            views = [kept[start:end].view(dtype) for start, end, dtype in places]
            scales = (views[0], views[1]) if region.is_coded else None
            self.rows.append(Kept(region, own.detach(), views[4], (views[2], views[3]), scales))

    def detach(self) -> None:
        """Let go of the memory."""
        self.rows = []
        self.kept = torch.empty(0, dtype=torch.uint8)

    def reset(self) -> None:
        """Make all moments zero, and the weights what their bf16 numbers are."""
        self.kept.zero_()
        for row in self.rows:
            if row.scales is not None:
                for codes, code in zip(row.moments, (signed_code(), unsigned_code()), strict=True):
                    codes.fill_(code.zero)

    @property
    def moment_bytes(self) -> int:
        """Size of the moments and their scales, wherever they are."""
        return self.num_bytes - self.numel * self.rest_bits // 8

    def update(self, rates: Rates, scale: float, threads: int) -> int:
        """Take one step; returns how many gradients were not finite."""
        gradient = self.gradient
        assert gradient is not None, "the vector has been laid out without a gradient"
        return load_native().step(
            self._describe(gradient),
            pack_groups([rates]),
            weights=f"split_{self.rest_bits}" if self.is_split else "fp32",
            gradients=_GRADIENTS[gradient.dtype],
            scale=scale,
            threads=threads,
        )

    def _describe(self, gradient: Tensor) -> Any:
        """Describe the regions to the native step."""
        parts = np.zeros(len(self.rows), PART)
        for part, row in zip(parts, self.rows, strict=True):
            part["size"], part["phase"] = row.region.numel, row.region.phase
            part["weights"], part["rest"] = row.weights.data_ptr(), row.rest.data_ptr()
            part["gradients"] = gradient[row.region.place].data_ptr()
            for number in (1, 2):
                part[f"moment{number}"] = row.moments[number - 1].data_ptr()
                if row.scales is not None:
                    part[f"scale{number}"] = row.scales[number - 1].data_ptr()
        number_blocks(parts)
        return parts


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
        self.opened: Callable[[FlatState], AbstractContextManager[None]] = lambda _: nullcontext()
        """What is kept is in memory inside; another one where it lives elsewhere."""
        self._states: dict[int, list[FlatState]] = {}

    def set_scale(self, loss_scale: float, norm: Tensor | float, max_norm: float) -> None:
        """Unscale and clip what the next steps read.

        Args:
            loss_scale: Gradients are that many times too large.
            norm: Of all gradients as they are; not looked at without clipping.
            max_norm: What they are clipped to once unscaled; 0 for no clipping.
        """
        excess = (float(norm) / loss_scale + 1e-6) / max_norm if max_norm > 0.0 else 1.0
        self.scale = 1.0 / (loss_scale * max(1.0, excess))

    @property
    def flat_states(self) -> list[FlatState]:
        """What is kept of all vectors, in the order in which they were laid out."""
        return [state for states in self._states.values() for state in states]

    def lay_out(self, flat: Tensor, regions: Sequence[Region]) -> FlatState:
        """Say what lies in a flat vector in host memory; it has to live as long as this."""
        state = FlatState(flat.dtype, regions, rest_bits=self.rest_bits)
        weights = [flat.data[region.place] for region in regions]
        state.attach(weights, torch.zeros(state.num_bytes, dtype=torch.uint8))
        state.reset()
        self._states[id(flat)] = [state]
        return state

    def lay_out_elsewhere(self, flat: Tensor, states: Sequence[FlatState]) -> None:
        """Say what is kept of a flat vector, piece by piece, that only `opened` has in memory."""
        self._states[id(flat)] = list(states)

    def find(self, flat: Tensor) -> list[FlatState]:
        """Return what is kept of a vector."""
        return self._states[id(flat)]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all vectors that the groups hold now, from their gradients."""
        assert closure is None, "ZeRO has the gradients already"
        for group in self.param_groups:
            for state in (state for flat in group["params"] for state in self.find(flat)):
                with self.opened(state):
                    self._update(state, group)

    def _update(self, state: FlatState, group: dict[str, Any]) -> None:
        state.step += 1
        rates = Rates(
            float(group["lr"]),
            (float(group["betas"][0]), float(group["betas"][1])),
            float(group["eps"]),
            float(group["weight_decay"]),
            state.step,
        )
        state.update(rates, self.scale, torch.get_num_threads())

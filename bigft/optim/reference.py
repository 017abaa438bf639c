"""AdamW with block-wise 8-bit moments, in numpy: what the native step has to equal bit for bit.

Methods: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101; Dettmers
et al., arXiv 2110.02861 (8-bit moments); the split of an fp32 number into a bf16 number and a
remainder is that of FlashOptim (arXiv 2602.23349) with all 16 bits kept.

Every line is one operation of fp32 with one rounding. That makes the result independent of
instruction sets, threads and compilers, and this file slow.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bigft.optim.code8 import (
    BLOCK,
    Code,
    Codes,
    Floats,
    find_codes,
    fused,
    signed_code,
    unsigned_code,
)

_LARGEST = np.float32(1.8446743e19)
"""The largest number whose square is one, too."""

_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Rates:
    """The numbers of one step, as fp32 numbers where they enter the arithmetic."""

    learning_rate: float
    betas: tuple[float, float]
    epsilon: float
    weight_decay: float
    step: int
    """1 for the first one."""

    def fold(self) -> dict[str, np.float32]:
        """Compute in fp64 what is the same for all elements."""
        beta1, beta2 = self.betas
        folded = {
            "beta1": beta1,
            "beta2": beta2,
            "one_minus_beta1": 1.0 - beta1,
            "one_minus_beta2": 1.0 - beta2,
            "epsilon": self.epsilon,
            "negative_step": -self.learning_rate / (1.0 - beta1**self.step),
            "decay": 1.0 - self.learning_rate * self.weight_decay,
            "inverse_root": (1.0 - beta2**self.step) ** -0.5,
        }
        return {name: np.float32(value) for name, value in folded.items()}


@dataclass
class Moments:
    """Both moments of a contiguous part of a parameter, in blocks of 256 elements."""

    first: Codes
    """`(N,)`, by `signed_code`."""
    second: Codes
    """`(N,)`, by `unsigned_code`."""
    first_scale: Floats
    """`(blocks,)`: the largest magnitude of each block."""
    second_scale: Floats
    phase: int = 0
    """Elements of the first block that lie before this part: blocks are counted from the first
    element of the parameter, whoever holds it."""

    @classmethod
    def zeros(cls, size: int, phase: int = 0) -> "Moments":
        """Start with nothing."""
        blocks = count_blocks(size, phase)
        return cls(
            np.full(size, signed_code().zero, np.uint8),
            np.full(size, unsigned_code().zero, np.uint8),
            np.zeros(blocks, np.float32),
            np.zeros(blocks, np.float32),
            phase,
        )


def count_blocks(size: int, phase: int) -> int:
    """Count the blocks that a part touches."""
    return -(-(size + phase) // BLOCK)


def step_8bit(
    weights: Floats, gradients: Floats, moments: Moments, rates: Rates, scale: float = 1.0
) -> int:
    """Take one step in place.

    Args:
        weights: `(N,)`.
        gradients: `(N,)`, multiplied by `scale` first. Those that are not finite then, or whose
            squares are not, count as 0.
        moments: Of these elements.
        rates: Of this step.
        scale: Unscales and clips.

    Returns:
        How many gradients counted as 0.
    """
    phase = moments.phase
    first = dequantise(moments.first, moments.first_scale, phase, signed_code())
    second = dequantise(moments.second, moments.second_scale, phase, unsigned_code())
    dropped = step_fp32(weights, gradients, first, second, rates, scale)
    moments.first, moments.first_scale = quantise(first, phase, signed_code())
    moments.second, moments.second_scale = quantise(second, phase, unsigned_code())
    return dropped


def step_fp32(
    weights: Floats,
    gradients: Floats,
    first: Floats,
    second: Floats,
    rates: Rates,
    scale: float = 1.0,
) -> int:
    """Take one step in place with moments in fp32; arguments as in `step_8bit`."""
    r = rates.fold()
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        gradient = gradients * np.float32(scale)
        usable = np.abs(gradient) <= _LARGEST
        gradient = np.where(usable, gradient, np.float32(0))
        first[:] = fused(first, r["beta1"], gradient * r["one_minus_beta1"])
        square = gradient * gradient * r["one_minus_beta2"]
        second[:] = fused(second, r["beta2"], square)
        root = fused(np.sqrt(second), r["inverse_root"], r["epsilon"])
        weights[:] = fused(first / root, r["negative_step"], weights * r["decay"])
    return int(len(gradient) - usable.sum())


def quantise(values: Floats, phase: int, code: Code) -> tuple[Codes, Floats]:
    """Code fp32 numbers `(N,)`; returns codes `(N,)` and the scales of the blocks."""
    rows = _cut(values, phase)
    scales = np.abs(rows).max(1, initial=0)
    scales = np.where(scales < _TINY, np.float32(0), scales).astype(np.float32)
    with np.errstate(divide="ignore"):
        inverse = np.where(scales > 0, np.float32(1) / scales, np.float32(0)).astype(np.float32)
    codes = find_codes(rows * inverse[:, None], code).reshape(-1)
    return codes[phase : phase + len(values)], scales


def dequantise(codes: Codes, scales: Floats, phase: int, code: Code) -> Floats:
    """Return the fp32 numbers of codes `(N,)`."""
    of_block = (np.arange(len(codes)) + phase) // BLOCK
    found: Floats = code.values[codes] * scales[of_block]
    return found


def _cut(values: Floats, phase: int) -> Floats:
    """Cut into rows of one block each, filled up with zeros."""
    rows = np.zeros(count_blocks(len(values), phase) * BLOCK, np.float32)
    rows[phase : phase + len(values)] = values
    return rows.reshape(-1, BLOCK)


# Weights in two parts.


def split(
    weights: Floats, bits: int = 16
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.signedinteger]]:
    """Split fp32 numbers into bf16 numbers and what is missing in them.

    Args:
        weights: Any shape.
        bits: 16: exact. 8: rounded to numbers with 16 bits of fraction (24 bits in all).

    Returns:
        The bf16 numbers as their bits, rounded to nearest with ties away from zero, and the
        difference in units of the last bit kept, int16 or int8.
    """
    whole = weights.view(np.uint32)
    if bits == 8:
        whole = whole + np.uint32(0x80)
    upper = ((whole + np.uint32(0x8000)) >> 16).astype(np.uint16)
    if bits == 8:
        return upper, (whole >> 8).astype(np.uint8).view(np.int8)
    return upper, whole.astype(np.uint16).view(np.int16)


def join(upper: npt.NDArray[np.uint16], rest: npt.NDArray[np.signedinteger]) -> Floats:
    """Put together what `split` has split."""
    lower = rest.astype(np.int32) * (256 if rest.dtype == np.int8 else 1)
    joined: Floats = ((upper.astype(np.uint32) << 16) + lower.view(np.uint32)).view(np.float32)
    return joined

"""An 8-bit code for the moments of Adam, block by block: bitsandbytes' dynamic map, by arithmetic.

Method: Dettmers et al., "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861. Every
block of 256 elements is divided by its largest magnitude; what is left, in [-1, 1] or [0, 1], gets
the nearest of 256 values. They lie densest where magnitudes are largest: each decade below 1 has
half as many as the one above it, down to 10**-7.

Within a decade the values are equally far from each other, and twice as many as in the one below.
So coding is arithmetic instead of a search: a straight line takes the decade to [1, 2), and the
highest bits of that number's fraction are the position within the decade. The values are those of
bitsandbytes' `create_dynamic_map`, in the same order, up to the last two bits of their fp32 form:
codes can be carried over as they are.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

BLOCK = 256
"""Elements that share a scale."""

INTERCEPT = np.float32(8 / 9)
"""A decade, [0.1, 1] of its top, has its values in the middles of equal parts of [1, 2]."""

_DECADES = 7
_BELOW_TWO = np.nextafter(np.float32(2), np.float32(0))

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Code:
    """A map of 256 values, and the straight lines that lead to them.

    Group 0 is zero, groups 1 to 7 are the decades below 1, group 8 is 1.0 alone.
    """

    values: Floats
    """`(256,)`, ascending."""
    zero: int
    """The code of zero."""
    threshold: Floats
    """`(9,)`: from here on a magnitude belongs to this group or a later one."""
    slope: Floats
    """`(9,)`: `slope * magnitude + INTERCEPT` is in [1, 2) within a group."""
    shift: int
    """Bits of the fraction, and the 1 before it, that group 0 leaves out; each group one less."""


@cache
def signed_code() -> Code:
    """Return the code of first moments: 127 negative values, zero, 128 positive ones."""
    return _make(zero=127, smallest=1, shift=24)


@cache
def unsigned_code() -> Code:
    """Return the code of second moments: zero and 255 positive values."""
    return _make(zero=0, smallest=2, shift=23)


def _make(zero: int, smallest: int, shift: int) -> Code:
    sizes = [smallest << decade for decade in range(_DECADES)]
    tops = [10.0 ** (decade - _DECADES + 1) for decade in range(_DECADES)]
    groups = [
        top * (0.1 + 0.9 * (np.arange(size) + 0.5) / size)
        for top, size in zip(tops, sizes, strict=True)
    ]
    groups = [np.zeros(1), *groups, np.ones(1)]
    positive = np.concatenate(groups[1:])
    # The largest value below zero has no counterpart of 1.0: 256 codes are an even number.
    negative = -positive[:-1][::-1] if zero else np.empty(0)
    middles = [(below[-1] + above[0]) / 2 for below, above in pairwise(groups)]
    # 1.0, and what rounding makes of it, comes to lie just above the beginning of its group.
    slopes = [0.0, *(1 / (0.9 * top) for top in tops), 1.005 / 9]
    return Code(
        values=np.concatenate([negative, [0.0], positive]).astype(np.float32),
        zero=zero,
        threshold=np.array([0.0, *middles], np.float32),
        slope=np.array(slopes, np.float32),
        shift=shift,
    )


def find_codes(shares: Floats, code: Code) -> Codes:
    """Find the nearest codes.

    Args:
        shares: Numbers divided by the scale of their block, any shape; at or above zero for
            `unsigned_code`.
        code: The map.

    Returns:
        Codes of the same shape. Zero stays zero, and signs are kept. -1 becomes the next value
        above it, which the map does not have.
    """
    magnitudes = np.abs(shares)
    group = (magnitudes[..., None] >= code.threshold[1:]).sum(-1)
    line = fused(magnitudes, code.slope[group], INTERCEPT)
    # Above its last value a decade goes on for a little: up to the middle of the gap to the next.
    fraction = np.minimum(line, _BELOW_TWO).view(np.int32) & 0x7FFFFF
    found = (fraction | 0x800000) >> (code.shift - group)
    # Without signs the smallest decade has two values: the count begins at 1, which is zero.
    position = found if code.zero else found - 1
    codes = np.where(np.signbit(shares), code.zero - position, code.zero + position)
    found_codes: Codes = np.maximum(codes, 0).astype(np.uint8)
    return found_codes


def fused(a: Floats, b: Floats | np.float32, c: Floats | np.float32) -> Floats:
    """Compute `a * b + c` of fp32 numbers with one rounding, as the instruction does.

    The product is exact in fp64. The sum is rounded there to odd, after which rounding to fp32 is
    the only one that counts (Boldo and Melquiond, 2008).
    """
    product = np.multiply(a, b, dtype=np.float64)
    addend = np.asarray(c, np.float64)
    total = product + addend
    virtual = total - product
    error = (product - (total - virtual)) + (addend - virtual)
    bits = total.view(np.int64)
    # Away from zero by one in the last place, or towards it, where the error says so.
    is_even = (bits & 1) == 0
    outward = (error > 0) == (total > 0)
    odd = np.where(is_even & (error != 0) & np.isfinite(total), np.where(outward, 1, -1), 0)
    return (bits + odd).view(np.float64).astype(np.float32)

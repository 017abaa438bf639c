"""Number formats without torch: numpy arrays of raw elements, cast and checked in small blocks.

numpy has no bfloat16: such elements travel as `uint16` bit patterns. Every cast rounds to nearest,
ties to even, as torch does.
"""

import sys

import numpy as np
from numpy.typing import NDArray

Raw = NDArray[np.generic]

CARRIERS: dict[str, type[np.generic]] = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "float8_e4m3fn": np.uint8,
    "float8_e5m2": np.uint8,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
}
"""The numpy type whose bytes are those of torch's dtype."""

CASTABLE = frozenset({"float64", "float32", "float16", "bfloat16"})
"""Formats that `cast_into` reads and writes."""

BLOCK = 1 << 16
"""Elements cast at once. 64 Ki: source, scratch and result stay in a core's L2 cache, which is 1.6
times as fast as casting 16 MiB at once."""

# Unsigned carrier, all bits but the sign, and the smallest pattern that is not a finite number.
_PATTERNS: dict[str, tuple[type[np.unsignedinteger], int, int]] = {
    "float64": (np.uint64, 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
    "float32": (np.uint32, 0x7FFF_FFFF, 0x7F80_0000),
    "float16": (np.uint16, 0x7FFF, 0x7C00),
    "bfloat16": (np.uint16, 0x7FFF, 0x7F80),
}
_UPPER_HALVES = slice(1 if sys.byteorder == "little" else 0, None, 2)
# The smallest number that rounds to infinity: half-way from bfloat16's largest to the next.
_BFLOAT16_LIMIT = float.fromhex("0x1.ffp127")


def is_floating(dtype: str) -> bool:
    """Whether the dtype is a floating point format."""
    return dtype.startswith(("float", "bfloat"))


def make_scratch() -> NDArray[np.uint32]:
    """Return memory for `cast_into`: fresh pages for each block would cost a third of its speed."""
    return np.empty(BLOCK, np.uint32)


def cast_into(
    source: Raw,
    source_dtype: str,
    target: Raw,
    target_dtype: str,
    scratch: NDArray[np.uint32] | None = None,
) -> bool:
    """Cast `source` into `target`, both 1-D `(numel,)` of their dtypes' carriers.

    Values out of the target's range become infinite; NaN stays NaN.

    Args:
        source: Elements to read.
        source_dtype: Their format.
        target: Where to write.
        target_dtype: The format there.
        scratch: From `make_scratch`; one per thread.

    Returns:
        Whether every result is finite; true for integers.
    """
    scratch = make_scratch() if scratch is None else scratch
    is_all_finite = True
    # Infinite results are reported to the caller, not to the terminal.
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(source), BLOCK):
            block = slice(start, start + BLOCK)
            is_all_finite &= _cast_block(
                source[block], source_dtype, target[block], target_dtype, scratch
            )
    return is_all_finite


def is_finite(values: Raw, dtype: str) -> bool:
    """Whether no element of a 1-D array is infinite or NaN; true for integers."""
    blocks = (values[start : start + BLOCK] for start in range(0, len(values), BLOCK))
    with np.errstate(invalid="ignore"):
        return all(_is_block_finite(block, dtype) for block in blocks)


def _is_block_finite(values: Raw, dtype: str) -> bool:
    if dtype not in _PATTERNS:
        return True
    if dtype == "float32":
        # Faster than the bits: NaN gets through `max`, and is not less than anything.
        return bool(values.max() < np.inf) and bool(values.min() > -np.inf)
    carrier, magnitude, limit = _PATTERNS[dtype]
    return int((values.view(carrier) & carrier(magnitude)).max()) < limit


def _cast_block(
    source: Raw, source_dtype: str, target: Raw, target_dtype: str, scratch: NDArray[np.uint32]
) -> bool:
    if source_dtype == target_dtype:
        target[:] = source
        return _is_block_finite(target, target_dtype)
    if source_dtype == "bfloat16":
        single = (source.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        single = source.astype(np.float32, copy=False)
    if target_dtype == "bfloat16":
        return _round_to_bfloat16(single, target, scratch[: len(single)])
    target[:] = single
    return _is_block_finite(target, target_dtype)


def _round_to_bfloat16(single: Raw, target: Raw, scratch: NDArray[np.uint32]) -> bool:
    bits = single.view(np.uint32)
    # Adding 0x7FFF plus the lowest kept bit carries into the kept half exactly when the dropped
    # half is above the middle, or in the middle with an odd neighbour.
    np.right_shift(bits, np.uint32(16), out=scratch)
    np.bitwise_and(scratch, np.uint32(1), out=scratch)
    np.add(scratch, np.uint32(0x7FFF), out=scratch)
    np.add(scratch, bits, out=scratch)
    target[:] = scratch.view(np.uint16)[_UPPER_HALVES]
    if bool(single.max() < _BFLOAT16_LIMIT) and bool(single.min() > -_BFLOAT16_LIMIT):
        return True
    # The carry turns some NaNs into infinity or zero; set their quiet bit instead.
    unordered = np.isnan(single)
    target[unordered] = (bits[unordered] >> np.uint32(16)) | np.uint32(0x40)
    return False

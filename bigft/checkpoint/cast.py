"""Number formats without torch: numpy arrays of raw elements, cast and checked in small blocks.

numpy has no bfloat16: such elements travel as `uint16` bit patterns. Every cast rounds to nearest,
ties to even, as torch does.
"""

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

# 64 Ki elements: source, scratch and result stay in a core's L2 cache. 1.6 times as fast as
# casting 16 MiB at once.
_BLOCK = 1 << 16
# Unsigned carrier, all bits but the sign, and the smallest pattern that is not a finite number.
_PATTERNS: dict[str, tuple[type[np.unsignedinteger], int, int]] = {
    "float64": (np.uint64, 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
    "float32": (np.uint32, 0x7FFF_FFFF, 0x7F80_0000),
    "float16": (np.uint16, 0x7FFF, 0x7C00),
    "bfloat16": (np.uint16, 0x7FFF, 0x7F80),
}


def is_floating(dtype: str) -> bool:
    """Whether the dtype is a floating point format."""
    return dtype.startswith(("float", "bfloat"))


def cast_into(source: Raw, source_dtype: str, target: Raw, target_dtype: str) -> None:
    """Cast `source` into `target`, both 1-D `(numel,)` of their dtypes' carriers.

    Values out of the target's range become infinite; NaN stays NaN.
    """
    if source_dtype == target_dtype:
        target[:] = source
        return
    for start in range(0, len(source), _BLOCK):
        block = slice(start, start + _BLOCK)
        _cast_block(source[block], source_dtype, target[block], target_dtype)


def is_finite(values: Raw, dtype: str) -> bool:
    """Whether no element of a 1-D array is infinite or NaN; true for integers."""
    if dtype not in _PATTERNS:
        return True
    carrier, magnitude, limit = _PATTERNS[dtype]
    bits = values.view(carrier)
    blocks = (bits[start : start + _BLOCK] for start in range(0, len(bits), _BLOCK))
    return all(int((block & carrier(magnitude)).max()) < limit for block in blocks)


def _cast_block(source: Raw, source_dtype: str, target: Raw, target_dtype: str) -> None:
    if source_dtype == "bfloat16":
        single = (source.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        with np.errstate(over="ignore"):
            single = source.astype(np.float32, copy=False)
    if target_dtype == "bfloat16":
        _round_to_bfloat16(single, target)
    else:
        with np.errstate(over="ignore"):
            target[:] = single


def _round_to_bfloat16(single: Raw, target: Raw) -> None:
    bits = single.view(np.uint32)
    # Adding 0x7FFF plus the lowest kept bit carries into the kept half exactly when the dropped
    # half is above the middle, or in the middle with an odd neighbour.
    rounded = (bits >> np.uint32(16)) & np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    target[:] = rounded
    # The carry turns some NaNs into infinity or zero; set their quiet bit instead.
    unordered = np.isnan(single)
    if unordered.any():
        target[unordered] = (bits[unordered] >> np.uint32(16)) | np.uint32(0x40)

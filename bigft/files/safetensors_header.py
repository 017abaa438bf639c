"""The header of a safetensors file, read without the tensors and without believing it.

| header length, 8 bytes | JSON header | tensors, one after the other |

What is refused is what the safetensors library refuses: a header that is too long or no object,
names given twice, tensors that overlap, leave holes or do not end with the file.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bigft.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""Bits of an element, by safetensors' name of the number format."""

_LENGTH_BYTES = 8
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}
# As many as torch has; the product of more sizes could become a number of megabytes.
_MAX_DIMENSIONS = 64


class TensorPlace(NamedTuple):
    """One tensor of a safetensors file."""

    dtype: str
    """As safetensors names it: `F32`, `BF16`, ..."""
    shape: tuple[int, ...]
    begin: int
    """Byte position in the file."""
    end: int


class Header(NamedTuple):
    """What a safetensors file says about itself."""

    tensors: dict[str, TensorPlace]
    """In the order of the file's bytes."""
    metadata: dict[str, str]


class _DamagedError(Exception):
    """Why a header cannot be believed."""


def read_header(path: Path, *, has_tensors: bool = True) -> Header:
    """Read where the tensors of a safetensors file lie.

    Args:
        path: Of the file.
        has_tensors: Whether they follow; a header can be alone.

    Raises:
        CheckpointError: The file is cut off, damaged, or no safetensors file.
        OSError: It cannot be opened.

    Memory: some 20 times the header, which has at most 100 MB.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        try:
            # A damaged length must not make us allocate: no header is longer than its file.
            if size < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, MAX_HEADER_BYTES):
                raise _DamagedError(f"its length, {length:,} bytes, is impossible")
            header = _parse(stream.read(length))
            metadata = _take_metadata(header)
            tensors = _place(header, _LENGTH_BYTES + length)
            places = list(tensors.values())
            if not has_tensors:
                size = places[-1].end if places else size
            _check_tiling(places, _LENGTH_BYTES + length, size)
        except (_DamagedError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{path}: not a complete safetensors file ({error}); download or copy it again"
            ) from error
    return Header(tensors, metadata)


def measure_header(path: Path) -> int:
    """Return the bytes of a safetensors file before its first tensor.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
    return _LENGTH_BYTES + min(length, MAX_HEADER_BYTES)


def _parse(text: bytes) -> dict[str, Any]:
    # The library wants the brace at once; white space may follow the object, as padding.
    if text[:1] != b"{":
        raise _DamagedError("no JSON object")
    header = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
    assert isinstance(header, dict)  # it begins with a brace
    return header


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise _DamagedError(f"{name!r} is there twice")
        table[name] = value
    return table


def _take_metadata(header: dict[str, Any]) -> dict[str, str]:
    metadata = header.pop("__metadata__", None)
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _DamagedError("__metadata__ is no table of texts")
    return metadata


def _place(header: dict[str, Any], base: int) -> dict[str, TensorPlace]:
    places = {name: _read_entry(name, entry, base) for name, entry in header.items()}
    # Empty tensors lie between others, at the end of the one before.
    return dict(sorted(places.items(), key=lambda item: (item[1].begin, item[1].end)))


def _read_entry(name: str, entry: Any, base: int) -> TensorPlace:
    if not isinstance(entry, dict) or not entry.keys() >= _ENTRY_KEYS:
        raise _DamagedError(f"{name!r} lacks one of {', '.join(sorted(_ENTRY_KEYS))}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _DamagedError(f"{name!r} is of the unknown number format {dtype!r}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise _DamagedError(f"{name!r} has a shape or a place that is no list of counts")
    bits = DTYPE_BITS[dtype]
    for count in shape:
        bits *= count
    if bits != 8 * (offsets[1] - offsets[0]):
        raise _DamagedError(
            f"{name!r} is {dtype} {shape} but has {offsets[1] - offsets[0]:,} bytes"
        )
    return TensorPlace(dtype, tuple(shape), base + offsets[0], base + offsets[1])


def _are_counts(values: Any) -> bool:
    # `type`, because True is an int. 2**63: what the file's readers can count to.
    if not isinstance(values, list) or len(values) > _MAX_DIMENSIONS:
        return False
    return all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _check_tiling(places: Sequence[TensorPlace], begin: int, size: int) -> None:
    for place in places:
        if place.begin != begin:
            kind = "overlap" if place.begin < begin else "leave a hole"
            raise _DamagedError(f"its tensors {kind} at byte {min(begin, place.begin):,}")
        begin = place.end
    if begin != size:
        raise _DamagedError(f"its tensors end at byte {begin:,}, the file at {size:,}")

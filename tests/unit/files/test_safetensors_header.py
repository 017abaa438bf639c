"""Headers of safetensors files: what the library accepts and refuses, and no more."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from bigft.errors import CheckpointError
from bigft.files.safetensors_header import DTYPE_BITS, MAX_HEADER_BYTES, read_header


def write(path: Path, header: Any, num_bytes: int = 0, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(struct.pack("<Q", size) + text + bytes(num_bytes))
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_places_are_where_the_bytes_are(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}
    tensors |= {"empty": torch.ones(0, 4), "scalar": torch.tensor(7)}
    save_file(tensors, tmp_path / "x", {"format": "pt"})
    header = read_header(tmp_path / "x")
    assert header.metadata == {"format": "pt"}
    assert {name: place.shape for name, place in header.tensors.items()} == {
        name: tuple(value.shape) for name, value in tensors.items()
    }
    raw = (tmp_path / "x").read_bytes()
    for name, place in header.tensors.items():
        wanted = tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes()
        assert raw[place.begin : place.end] == wanted


@pytest.mark.parametrize(
    ("header", "num_bytes", "why"),
    [
        (b"", 0, "no JSON object"),
        (b"[]", 0, "no JSON object"),
        (b" {}", 0, "no JSON object"),
        (b"{\xff}", 0, "decode"),
        (b"{\0\0\0", 0, "Expecting"),
        (b"[" * 100_000, 0, "no JSON object"),
        (b'{"a":' + b"[" * 100_000, 0, "recursion|depth"),
        (b'{"a":{},"a":{}}', 0, "'a' is there twice"),
        (b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8, "twice"),
        ({"__metadata__": {"a": 1}}, 0, "no table of texts"),
        ({"__metadata__": []}, 0, "no table of texts"),
        ({"a": 3}, 0, "lacks one of"),
        ({"a": {"shape": [1]}}, 0, "lacks one of"),
        ({"a": entry("F33")}, 8, "unknown number format"),
        ({"a": entry(None)}, 8, "unknown number format"),
        ({"a": entry([])}, 8, "unknown number format"),
        ({"a": entry(shape=[-2])}, 8, "no list of counts"),
        ({"a": entry(shape=[2.0])}, 8, "no list of counts"),
        ({"a": entry(shape=[True, 2])}, 8, "no list of counts"),
        ({"a": entry(shape=[2**63])}, 8, "no list of counts"),
        ({"a": entry(shape=[1] * 65 + [2])}, 8, "no list of counts"),
        ({"a": entry(offsets=[0])}, 8, "no list of counts"),
        ({"a": entry(offsets=[0, 8, 8])}, 8, "no list of counts"),
        ({"a": entry(offsets=[8, 0])}, 8, "but has -8 bytes"),
        ({"a": entry(shape=[3])}, 8, r"is F32 \[3\] but has 8 bytes"),
        ({"a": entry(shape=[2**62] * 60)}, 8, "but has 8 bytes"),
        ({"a": entry(offsets=[4, 12])}, 12, "leave a hole"),
        ({"a": entry(), "b": entry()}, 8, "overlap"),
        ({"a": entry(), "b": entry(offsets=[4, 12])}, 12, "overlap"),
        ({"a": entry(), "b": entry(offsets=[12, 20])}, 20, "leave a hole"),
        ({"a": entry()}, 7, "the file at"),
        ({"a": entry()}, 9, "the file at"),
        ({}, 1, "the file at"),
    ],
)
def test_header_that_lies_is_refused(tmp_path: Path, header: Any, num_bytes: int, why: str) -> None:
    path = write(tmp_path / "x.safetensors", header, num_bytes)
    with pytest.raises(CheckpointError, match=why) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert "download or copy it again" in str(caught.value)


@pytest.mark.parametrize("length", [3, 2**32, 2**63, 2**64 - 1])
def test_length_that_is_impossible_is_refused(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "x", b"{}", 0, length)
    with pytest.raises(CheckpointError, match="is impossible"):
        read_header(path)


def test_header_beyond_the_formats_limit_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x", b"{", 0, MAX_HEADER_BYTES + 1)
    with path.open("r+b") as file:
        file.truncate(8 + MAX_HEADER_BYTES + 1)
    with pytest.raises(CheckpointError, match="100,000,001 bytes, is impossible"):
        read_header(path)


def test_formats_are_those_of_the_library(tmp_path: Path) -> None:
    """Every number format that we know opens there, with the size that we take it for."""
    for dtype, bits in DTYPE_BITS.items():
        path = write(tmp_path / "x", {"a": entry(dtype, (8,), (0, bits))}, bits)
        assert read_header(path).tensors["a"].dtype == dtype
        with safe_open(path, framework="numpy") as opened:
            assert opened.get_slice("a").get_dtype() == dtype


# --- any bytes -----------------------------------------------------------------------------------

_counts = st.integers(-1, 5) | st.sampled_from([2**31, 2**62, 2**63, 2**64, True, 1.5, None, "1"])
_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F4", "X", "", None, 1]),
        "shape": st.lists(_counts, max_size=3) | _counts,
        "data_offsets": st.lists(_counts | st.integers(0, 40), max_size=3),
    },
    optional={"more": st.none()},
)
_headers = st.dictionaries(
    st.sampled_from(["a", "b", "c", "", "ü", "__metadata__"]), _entries | st.none() | _counts
)


@st.composite
def _sound(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """A header without a fault, which one change may then break."""
    header: dict[str, Any] = {}
    position = 0
    for number in range(draw(st.integers(0, 4))):
        dtype = draw(st.sampled_from(["F32", "BF16", "U8", "I64"]))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        size = DTYPE_BITS[dtype] // 8
        for count in shape:
            size *= count
        header[f"t{number}"] = entry(dtype, shape, (position, position + size))
        position += size
    if header and draw(st.booleans()):
        one = header[draw(st.sampled_from(sorted(header)))]
        key = draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        one[key] = draw(_entries)[key]
    return header, position + draw(st.sampled_from([0, 0, 0, -1, 1]))


def check_against_the_library(path: Path) -> None:
    """Whatever the bytes: only our own error, and the library's verdict."""
    refusal, header = "", None
    try:
        header = read_header(path)
    except CheckpointError as error:
        refusal = str(error)
    found = open_with_library(path)
    if found is None:
        assert header is None, "accepted, though the library refuses it"
        assert str(path) in refusal
    elif header is None:
        # Of names given twice the library takes one.
        assert "twice" in refusal, f"refused, though the library accepts it: {refusal}"
    else:
        assert found == {name: place.shape for name, place in header.tensors.items()}


def open_with_library(path: Path) -> dict[str, tuple[int, ...]] | None:
    try:
        with safe_open(path, framework="numpy") as opened:
            names = list(opened.keys())
            return {name: tuple(opened.get_slice(name).get_shape()) for name in names}
    except SafetensorError:
        return None


def check_any_header(path: Path, header: Any, num_bytes: int) -> None:
    check_against_the_library(write(path, header, max(num_bytes, 0)))


def check_damaged(path: Path, sound: tuple[dict[str, Any], int], at: int, byte: int) -> None:
    data = bytearray(write(path, *sound).read_bytes())
    data[at % len(data)] = byte
    path.write_bytes(data)
    check_against_the_library(path)


_pr = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
_nightly = settings(max_examples=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
_any_header = given(header=_headers, num_bytes=st.integers(0, 40))
_any_sound = given(header=_sound())
_any_damage = given(sound=_sound(), at=st.integers(0, 400), byte=st.integers(0, 255))
_any_bytes = given(data=st.binary(max_size=200))


@_pr
@_any_header
def test_any_header(tmp_path: Path, header: Any, num_bytes: int) -> None:
    check_any_header(tmp_path / "x", header, num_bytes)


@_pr
@_any_sound
def test_nearly_sound_header(tmp_path: Path, header: tuple[dict[str, Any], int]) -> None:
    check_any_header(tmp_path / "x", *header)


@_pr
@_any_damage
def test_damaged_byte(
    tmp_path: Path, sound: tuple[dict[str, Any], int], at: int, byte: int
) -> None:
    check_damaged(tmp_path / "x", (sound[0], max(sound[1], 0)), at, byte)


@_pr
@_any_bytes
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    check_against_the_library(tmp_path / "x")


@pytest.mark.nightly
@_nightly
@_any_header
def test_any_header_nightly(tmp_path: Path, header: Any, num_bytes: int) -> None:
    check_any_header(tmp_path / "x", header, num_bytes)


@pytest.mark.nightly
@_nightly
@_any_sound
def test_nearly_sound_header_nightly(tmp_path: Path, header: tuple[dict[str, Any], int]) -> None:
    check_any_header(tmp_path / "x", *header)


@pytest.mark.nightly
@_nightly
@_any_damage
def test_damaged_byte_nightly(
    tmp_path: Path, sound: tuple[dict[str, Any], int], at: int, byte: int
) -> None:
    check_damaged(tmp_path / "x", (sound[0], max(sound[1], 0)), at, byte)


@pytest.mark.nightly
@_nightly
@_any_bytes
def test_any_bytes_nightly(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    check_against_the_library(tmp_path / "x")

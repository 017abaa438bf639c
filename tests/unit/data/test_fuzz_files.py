"""Whatever stands in a file: reading it ends in rows, or in a DataError that names the file."""

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from bigft.data.readers.files import READERS, find_suffix
from bigft.data.readers.raw import RawRow, parse
from bigft.errors import DataError

TURNS = [{"role": "user", "content": "Grüße"}, {"role": "assistant", "content": "\U0001f600"}]
ROWS = [{"text": "a,b", "n": 1.5}, {"text": 'é "q"\n\tz', "n": -2}, {"text": "", "n": 3e99}]
LINES = "\n".join(json.dumps(row) for row in ROWS).encode()


def write_arrow(make: Callable[..., Any], **settings: Any) -> bytes:
    table = pyarrow.table({"text": ["a", "bc", None], "n": [[1], [], None], "s": [{"x": 1}] * 3})
    sink = io.BytesIO()
    with make(sink, table.schema, **settings) as writer:
        writer.write_table(table)
    return sink.getvalue()


def compress_zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


TEXTS = [
    ("a.jsonl", LINES),
    ("a.json", LINES),
    ("a.json", json.dumps(ROWS, indent=1, ensure_ascii=False).encode()),
    ("a.json", json.dumps({"v": 1, "data": ROWS}).encode()),
    ("a.json", json.dumps({"text": ["a", "b"], "n": [[1], None]}).encode()),
    ("a.json", "\n".join(json.dumps({"messages": TURNS}, indent=1) for _ in "ab").encode()),
    ("a.csv", b'text,n\n"a,b",1.5\r\n"q ""q""\nz",-2\n\n,3\n'),
    ("a.tsv", 'text\tn\na,b\t1.5\n"ü"\t2'.encode()),
    ("a.txt", "\ufeffone\n\ntwö\r\n".encode()),
]
PACKED = [
    ("a.jsonl.gz", gzip.compress(LINES)),
    ("a.json.bz2", bz2.compress(json.dumps(ROWS).encode())),
    ("a.csv.xz", lzma.compress(b"text,n\na,1\nb,2\n")),
    ("a.jsonl.zst", compress_zstd(LINES)),
    ("a.txt.zst", compress_zstd(b"one two")),
]
COLUMNAR = [
    ("a.parquet", write_arrow(parquet.ParquetWriter)),
    ("a.parquet", write_arrow(parquet.ParquetWriter, compression="none", use_dictionary=False)),
    ("a.arrow", write_arrow(pyarrow.ipc.new_stream)),
    ("a.arrow", write_arrow(pyarrow.ipc.new_file)),
    (
        "a.feather",
        write_arrow(pyarrow.ipc.new_file, options=pyarrow.ipc.IpcWriteOptions(compression="lz4")),
    ),
]

_FRAGMENTS = [
    *(
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"\n",
        b"\r",
        b"\t",
        b"\0",
        b"\\",
        b"\\u",
        b"\\ud8",
    ),
    *(b"\xff", b"\xe9", b"\xef\xbb\xbf", b"\xff\xfe", b"NaN", b"1e", b"-", b"9" * 30, b"[" * 120),
    *(b'{"a":' * 120, b'""', b"null", b"\xed\xa0\x80"),
]


@st.composite
def mutated(draw: st.DrawFn, seeds: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """A valid file with up to four changes."""
    name, content = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 20)))
        middle = draw(
            st.sampled_from(_FRAGMENTS)
            | st.binary(max_size=4)
            | st.just(b"")
            | st.just(content[start:end] * 2)
        )
        content = content[:start] + middle + content[end:]
        if draw(st.integers(0, 9)) == 0:
            content = content[:start]
    return name, content


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["data", "text", "messages", "role"]), inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def check(folder: Path, name: str, content: bytes) -> None:
    path = folder / name
    path.write_bytes(content)
    rows, problem = 0, ""
    try:
        for row in READERS[find_suffix(path)](path, "--data"):
            rows += 1
            assert name in row.origin
            check_row(row)
    except DataError as error:
        problem = str(error)
    assert rows or problem
    if problem:
        assert name in problem
        assert "--data" in problem
        problem.encode()


def check_row(row: RawRow) -> None:
    try:
        record = parse(row)
    except ValueError as error:
        error_type, problem = type(error), str(error)
    else:
        # What follows writes texts as UTF-8 and walks through them.
        json.dumps(record, ensure_ascii=False, default=str).encode()
        return
    assert error_type is ValueError
    assert problem.encode()


@settings(max_examples=600)
@given(name=st.sampled_from([f"a{suffix}" for suffix in READERS]), content=st.binary(max_size=60))
def test_random_bytes(folder: Path, name: str, content: bytes) -> None:
    check(folder, name, content)


@settings(max_examples=600)
@given(
    values=st.lists(json_values, max_size=3),
    separator=st.sampled_from(["\n", "", " ", ",", "\n\n"]),
    indent=st.sampled_from([None, 0, 1]),
    is_ascii=st.booleans(),
)
def test_random_json(
    folder: Path, values: list[Any], separator: str, indent: int | None, is_ascii: bool
) -> None:
    texts = (json.dumps(value, indent=indent, ensure_ascii=is_ascii) for value in values)
    content = separator.join(texts).encode("utf-8", "surrogatepass")
    for name in ("a.json", "a.jsonl"):
        check(folder, name, content)


@settings(max_examples=1200)
@given(file=mutated(TEXTS))
def test_changed_texts(folder: Path, file: tuple[str, bytes]) -> None:
    check(folder, *file)


@settings(max_examples=300)
@given(file=mutated(PACKED))
def test_changed_compressed_files(folder: Path, file: tuple[str, bytes]) -> None:
    check(folder, *file)


@settings(max_examples=500)
@given(file=mutated(COLUMNAR))
def test_changed_columnar_files(folder: Path, file: tuple[str, bytes]) -> None:
    check(folder, *file)


def test_the_files_are_good_before_they_are_changed(folder: Path) -> None:
    for name, content in [*TEXTS, *PACKED, *COLUMNAR]:
        path = folder / name
        path.write_bytes(content)
        assert [parse(row) for row in READERS[find_suffix(path)](path, "--data")]

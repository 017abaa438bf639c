"""Writing a file and reading it back."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from bigft.data.readers.files import READERS, find_suffix
from bigft.data.readers.raw import RawRow, parse

ReadRows = Callable[[str, bytes], list[RawRow]]
Read = Callable[[str, bytes], list[Any]]
Compress = Callable[[bytes, str], bytes]


@pytest.fixture
def read_rows(tmp_path: Path) -> ReadRows:
    """Write a file and read its raw rows."""

    def read(name: str, content: bytes) -> list[RawRow]:
        path = tmp_path / name
        path.write_bytes(content)
        return list(READERS[find_suffix(path)](path, "--data"))

    return read


@pytest.fixture
def read(read_rows: ReadRows) -> Read:
    """Write a file and read it: records, and the reasons of the rows that are bad."""

    def parse_all(name: str, content: bytes) -> list[Any]:
        return [parse_or_explain(row) for row in read_rows(name, content)]

    return parse_all


@pytest.fixture
def compress() -> Compress:
    """Compress bytes as the last ending of a file's name says."""
    return compress_as


def compress_as(content: bytes, suffix: str) -> bytes:
    match suffix.rpartition(".")[2]:
        case "gz":
            return gzip.compress(content)
        case "bz2":
            return bz2.compress(content)
        case "xz":
            return lzma.compress(content)
        case "zst":
            sink = pyarrow.BufferOutputStream()
            with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
                stream.write(content)
            return bytes(sink.getvalue())
    return content


def parse_or_explain(row: RawRow) -> Any:
    try:
        return dict(parse(row))
    except ValueError as error:
        return str(error)

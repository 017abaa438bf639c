import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import feather, parquet

from bigft.data.readers.files import READERS, find_suffix
from bigft.data.readers.raw import RawRow
from bigft.errors import DataError

Read = Callable[[str, bytes], list[Any]]

ROWS = [{"text": f"row {number}", "tags": ["a", None]} for number in range(600)]
TABLE = pyarrow.Table.from_pylist(ROWS)


def write_stream(table: Any, path: Path) -> None:
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def write_file(table: Any, path: Path) -> None:
    with pyarrow.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


WRITERS = {
    "A.PARQUET": parquet.write_table,
    "stream.arrow": write_stream,
    "file.arrow": write_file,
    "lz4.feather": feather.write_feather,
}


def read_file(path: Path) -> list[RawRow]:
    return list(READERS[find_suffix(path)](path, "--data"))


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](TABLE, tmp_path / name)
    rows = read_file(tmp_path / name)
    assert [row.payload for row in rows] == ROWS
    assert [row.origin for row in rows[::599]] == [
        f"{tmp_path / name}, row 1",
        f"{tmp_path / name}, row 600",
    ]


@pytest.mark.parametrize("name", WRITERS)
def test_damage_is_an_error(tmp_path: Path, read: Read, name: str) -> None:
    WRITERS[name](TABLE, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    for broken in (content[: len(content) // 2], content[:9], b"PAR1", b"x" * 100):
        with pytest.raises(DataError, match=rf"--data=.*{name}: not a readable"):
            read(name, broken)


@pytest.mark.parametrize("name", WRITERS)
def test_a_table_without_rows_or_with_two_columns_of_one_name_is_an_error(
    tmp_path: Path, name: str
) -> None:
    WRITERS[name](TABLE.slice(0, 0), tmp_path / name)
    with pytest.raises(DataError, match="the file has no rows"):
        read_file(tmp_path / name)
    twice = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    if name != "lz4.feather":  # Its writer refuses.
        WRITERS[name](twice, tmp_path / name)
        with pytest.raises(DataError, match="more than one column is called 'text'"):
            read_file(tmp_path / name)


@pytest.mark.parametrize("name", WRITERS)
def test_a_value_that_cannot_be_read_spoils_its_row_only(
    tmp_path: Path, read: Read, name: str
) -> None:
    texts = pyarrow.array([b"a", b"\xff", b"c"]).view(pyarrow.string())
    table = pyarrow.table({"text": texts})
    WRITERS[name](table, tmp_path / name)
    rows = read(name, (tmp_path / name).read_bytes())
    assert rows[::2] == [{"text": "a"}, {"text": "c"}]
    assert "a value cannot be read: " in rows[1]


def test_a_date_beyond_the_calendar_spoils_its_row_only(tmp_path: Path, read: Read) -> None:
    days = pyarrow.array([0, 2**31 - 1], pyarrow.int32()).view(pyarrow.date32())
    write_file(pyarrow.table({"day": days}), tmp_path / "a.arrow")
    first, second = read("a.arrow", (tmp_path / "a.arrow").read_bytes())
    assert first == {"day": datetime.date(1970, 1, 1)}
    assert "a value cannot be read: " in second


def test_old_feather_is_named(read: Read) -> None:
    with pytest.raises(DataError, match="version 1 of Feather; write it anew"):
        read("a.feather", b"FEA1" + b"\0" * 20 + b"FEA1")

from collections.abc import Callable
from typing import Any

import pytest

from bigft.data.readers import table
from bigft.data.readers.raw import RawRow
from bigft.errors import DataError

Read = Callable[[str, bytes], list[Any]]
ReadRows = Callable[[str, bytes], list[RawRow]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"text\n", "no rows below its first one"),
        (b"a,b,a\n1,2,3\n", "more than one column is called 'a'"),
        (b"a,,\n1,2,3\n", "more than one column is called ''"),
        (b"caf\xe9,b\n1,2\n", r"a\.csv:1: the names of the columns: not UTF-8 .* iconv"),
        (b'"a\nb,c\n', "the names of the columns cannot be read"),
        (b'a,b\n1,2\n3,"4\n5,6\n', r"a\.csv:3: a row begins here that has no end .*is doubled"),
        (b'a,b\n1,2\n"3"x,"4\n5,6"\n7,8\n', r"a\.csv:3: a row begins here that has no end"),
        (b'a,b\n1,2\n"3\n4"x,5\n', r"a\.csv:3: a row begins here that has no end"),
    ],
)
def test_what_cannot_be_read_on_is_an_error(read: Read, content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read("a.csv", content)


def test_bad_rows_leave_the_others_alone(read: Read, read_rows: ReadRows) -> None:
    content = b'a,b\n1,2\n3\n4,5,6\n\n7,\xe9\n"8"x,"9"\n"10\n11",12\n13,14'
    rows = read("a.csv", content)
    assert rows[0] == {"a": "1", "b": "2"}
    assert rows[1] == "1 fields, not the 2 that the first row names: '3'"
    assert rows[2] == "3 fields, not the 2 that the first row names: '4,5,6'"
    assert "not UTF-8 at byte 2" in rows[3]
    assert "',' expected after '\"'" in rows[4]
    assert rows[5:] == [{"a": "10\n11", "b": "12"}, {"a": "13", "b": "14"}]
    lines = [row.origin.rpartition(":")[2] for row in read_rows("a.csv", content)]
    assert lines == ["2", "3", "4", "6", "7", "8", "10"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"a;b c\n1,5;2\n"),
        ("a.csv", b"\xef\xbb\xbfa\tb c\r\n1,5\t2\r\n"),
        ("a.csv", b'a , "b c"\n"1,5",2\n'.replace(b', "', b',"')),
        ("a.tsv", b"a\tb c\n1,5\t2\n"),
        ("a.csv", b'a,b c\r"1,5",2\r'),
    ],
)
def test_separators_and_line_ends_are_recognised(read: Read, name: str, content: bytes) -> None:
    assert read(name, content) == [{"a": "1,5", "b c": "2"}]


def test_a_long_field_is_read(read: Read) -> None:
    assert len(read("a.csv", b"text\n" + b"x" * 300_000 + b"\n")[0]["text"]) == 300_000


def test_a_quote_that_is_not_closed_does_not_fill_the_memory(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "MAX_ROW_BYTES", 1 << 20)
    with pytest.raises(DataError, match=r"a\.csv:2: a row begins here .*field limit"):
        read("a.csv", b'a,b\n"1,2\n' + b"3,4\n" * 500_000)
    with pytest.raises(DataError, match=r"a\.csv:2: the line is longer than 1 MiB"):
        read("a.csv", b"a,b\n" + b"x" * (2 << 20))

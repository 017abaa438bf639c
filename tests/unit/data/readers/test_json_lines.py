import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigft.data.readers import json_lines
from bigft.data.readers.json_lines import read_json_lines
from bigft.data.readers.raw import RawRow
from bigft.errors import DataError

Read = Callable[[str, bytes], list[Any]]
ReadRows = Callable[[str, bytes], list[RawRow]]


def test_a_payload_is_the_line_and_its_place_counts_blank_lines(read_rows: ReadRows) -> None:
    rows = read_rows("a.jsonl", b'\xef\xbb\xbf\n{"a": 1}\r\n\n \t\n{"b": 2}')
    assert [row.payload for row in rows] == [b'{"a": 1}\r\n', b'{"b": 2}']
    assert [row.origin.rpartition("/")[2] for row in rows] == ["a.jsonl:2", "a.jsonl:5"]


def test_bad_lines_leave_the_others_alone(read: Read) -> None:
    content = b'{"t": 1}\n{"t": b}\n[1]\n{"t": "\xe9"}\n{"t": "\x93\x94"}\nnull\n{"t": 2}\n'
    first, *bad, last = read("a.jsonl", content)
    assert (first, last) == ({"t": 1}, {"t": 2})
    assert bad[0] == "not JSON (Expecting value at character 7): '{\"t\": b}'"
    assert bad[1] == "a list, not an object: '[1]'"
    assert "not UTF-8 at byte 7" in bad[2]
    assert "iconv -f ISO-8859-1 -t UTF-8" in bad[2]
    assert "iconv -f WINDOWS-1252 -t UTF-8" in bad[3]
    assert bad[4] == "null, not an object: 'null'"


def test_lines_of_50_mb_are_read_in_three_times_their_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    line = b'{"text": "' + b"x" * 50_000_000 + b'"}\n'
    with path.open("wb") as file:
        for _ in range(3):
            file.write(line)
    tracemalloc.start()
    sizes = [len(row.payload) for row in read_json_lines(path, "--data")]  # type: ignore[arg-type]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sizes == [len(line)] * 3
    assert peak < 3 * len(line) + (4 << 20)


def test_a_file_without_line_ends_does_not_fill_the_memory(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "MAX_ROW_BYTES", 1 << 20)
    with pytest.raises(DataError, match=r"a\.jsonl:2: the line is longer than 1 MiB"):
        read("a.jsonl", b"{}\n" + b"x" * (2 << 20))

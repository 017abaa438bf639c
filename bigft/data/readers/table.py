"""Comma- and tab-separated values."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bigft.data.readers.compression import InputFile, open_input
from bigft.data.readers.encoding import explain_bytes
from bigft.data.readers.raw import MAX_ROW_BYTES, RawRow, Unreadable, is_writable, make_unreadable
from bigft.errors import DataError

_QUOTING = 'a field that begins with " ends with ", and every " inside it is doubled'


def read_csv(path: Path, flag: str) -> Iterator[RawRow]:
    """Read comma-separated values; the first row names the columns.

    Where that row has no comma, semicolons or tabs in it are taken for the separator: so write
    spreadsheets in countries with a decimal comma.

    Raises:
        DataError: The file is damaged, UTF-16, has a quote that is not closed, names a column
            twice or has no rows.

    Memory: the longest row.
    """
    return _read_table(path, flag, ",;\t")


def read_tsv(path: Path, flag: str) -> Iterator[RawRow]:
    """Read tab-separated values, quoted as in CSV; otherwise as `read_csv`."""
    return _read_table(path, flag, "\t")


class _Lines:
    """The lines of a text, the last of which can be asked for."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self.last = ""
        # Bytes that are not UTF-8 spoil the rows that they stand in, not the file.
        self._text = io.TextIOWrapper(
            file.stream, encoding="utf-8-sig", errors="surrogateescape", newline=""
        )

    def __iter__(self) -> Iterator[str]:
        for line in iter(partial(self._text.readline, MAX_ROW_BYTES), ""):
            self._file.line += 1
            if len(line) == MAX_ROW_BYTES:
                raise self._file.fail(f"the line is longer than {MAX_ROW_BYTES >> 20} MiB")
            self.last = line
            yield line


def _read_table(path: Path, flag: str, separators: str) -> Iterator[RawRow]:
    csv.field_size_limit(MAX_ROW_BYTES)  # The default refuses fields of more than 128 KiB.
    is_empty = True
    with open_input(path, flag) as file:
        separator = _find_separator(file.stream, separators)
        lines = _Lines(file)
        rows = csv.reader(lines, strict=True, delimiter=separator)
        header = _read_header(rows, file)
        start = rows.line_num + 1
        for fields in _read_rows(rows, lines, file):
            if fields:
                is_empty = False
                yield RawRow(_build_payload(header, fields, separator), f"{path}:{start}")
            start = rows.line_num + 1
    if is_empty:
        raise DataError(f"{flag}={path}: the file has no rows below its first one")


def _find_separator(stream: io.BufferedReader, separators: str) -> str:
    start = stream.peek(1).lstrip(b"\xef\xbb\xbf\r\n").splitlines()[:1]
    found = [sign for sign in separators if start and sign.encode() in start[0]]
    return (found or list(separators))[0]


def _read_header(rows: Any, file: InputFile) -> list[str]:
    try:
        header: list[str] = next((row for row in rows if row), [])
    except csv.Error as error:
        raise file.fail(f"the names of the columns cannot be read ({error}); {_QUOTING}") from None
    text = "".join(header)
    if not is_writable(text):
        data = text.encode("utf-8", "surrogateescape")
        raise file.fail(f"the names of the columns: {explain_bytes(data)}")
    names = [name.strip() for name in header]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise file.fail(f"more than one column is called {repeated[0]!r}; rename or remove one")
    return names


def _read_rows(rows: Any, lines: _Lines, file: InputFile) -> Iterator[list[str] | Unreadable]:
    """Read row by row, and go on behind a wrong quote where that is safe."""
    start = rows.line_num + 1
    while True:
        try:
            fields = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            # With an odd number of quotes the row may go on below, and its end cannot be told.
            is_whole = rows.line_num == start and lines.last.count('"') % 2 == 0
            if not is_whole:
                reason = f"a row begins here that has no end ({error}); {_QUOTING}"
                raise file.fail(reason, start) from None
            yield make_unreadable(f"{error}; {_QUOTING}", lines.last)
        else:
            yield fields
        start = rows.line_num + 1


def _build_payload(
    header: list[str], fields: list[str] | Unreadable, separator: str
) -> dict[str, str] | Unreadable:
    if isinstance(fields, Unreadable):
        return fields
    text = separator.join(fields)
    if len(fields) != len(header):
        reason = f"{len(fields)} fields, not the {len(header)} that the first row names"
        return make_unreadable(reason, text)
    if not is_writable(text):
        return make_unreadable(explain_bytes(text.encode("utf-8", "surrogateescape")), text)
    return dict(zip(header, fields, strict=True))

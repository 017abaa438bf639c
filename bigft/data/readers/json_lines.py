"""One JSON object per line, handed on as bytes: parsing is the work of other processes."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bigft.data.readers.compression import open_input
from bigft.data.readers.encoding import BOM
from bigft.data.readers.raw import MAX_ROW_BYTES, RawRow
from bigft.errors import DataError


def read_json_lines(path: Path, flag: str) -> Iterator[RawRow]:
    """Read the lines that are not blank; a payload is the line as it stands, with its end.

    Raises:
        DataError: The file is damaged, UTF-16, has a line of more than `MAX_ROW_BYTES` or none
            that is not blank.

    Memory: three times the longest line.
    """
    name = str(path)
    is_blank = True
    with open_input(path, flag) as file:
        lines = iter(partial(file.stream.readline, MAX_ROW_BYTES), b"")
        for file.line, line in enumerate(lines, 1):  # noqa: B020
            if file.line == 1:
                line = line.removeprefix(BOM)  # noqa: PLW2901
            if not line or line.isspace():
                continue
            if len(line) == MAX_ROW_BYTES:
                raise file.fail(f"the line is longer than {MAX_ROW_BYTES >> 20} MiB")
            is_blank = False
            yield RawRow(line, f"{name}:{file.line}")
    if is_blank:
        raise DataError(f"{flag}={path}: the file holds only blank lines")

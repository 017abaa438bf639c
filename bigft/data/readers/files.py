"""One reader per kind of file: a path in, records with their places (`a.jsonl:3`) out."""

import csv
import gzip
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from bigft.errors import DataError

Records = Iterator[tuple[Mapping[str, Any], str]]

_PARQUET_BATCH_ROWS = 1024


def find_suffix(path: Path) -> str:
    """Find the ending that decides the reader: `.jsonl`, or `.jsonl.gz` with its inner one."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def read_jsonl(path: Path, flag: str) -> Records:
    """Read one object per line; blank lines are skipped.

    Raises:
        DataError: A line is not a JSON object.
    """
    is_empty = True
    with _open(path) as file:
        for number, line in enumerate(_read_lines(file, path, flag), 1):
            # utf-8-sig on the first line only: Windows editors put a BOM before it.
            text = _decode(
                line, f"{flag}: {path}:{number}", "utf-8-sig" if number == 1 else "utf-8"
            )
            if text.strip():
                is_empty = False
                yield _parse_object(text, f"{flag}: {path}:{number}"), f"{path}:{number}"
    if is_empty:
        raise DataError(f"{flag}={path}: the file holds only blank lines")


def read_json(path: Path, flag: str) -> Records:
    """Read an array of objects, or one object per line.

    Raises:
        DataError: The file is neither.

    Memory: the whole file when it is an array.
    """
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start != b"[":
        yield from read_jsonl(path, flag)
        return
    text = _decode(path.read_bytes(), f"{flag}={path}", "utf-8-sig")
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{flag}={path}: not a JSON array: {error}") from None
    if not records:
        raise DataError(f"{flag}={path}: the array is empty")
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise DataError(f"{flag}: {path}, item {number} is not an object: {record!r:.80}")
        yield record, f"{path}, item {number}"


def read_csv(path: Path, flag: str) -> Records:
    """Read comma-separated values; the first row names the columns.

    Raises:
        DataError: A row has more or fewer fields than the first one, or there is only that one.
    """
    csv.field_size_limit(sys.maxsize)  # The default refuses fields of more than 128 KiB.
    last = 0
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for record in reader:
                last = reader.line_num
                if None in record or None in record.values():
                    expected = len(reader.fieldnames or ())
                    raise DataError(
                        f"{flag}: {path}:{last}: not the {expected} fields that the first row "
                        f"names: {list(record.values())!r:.80}"
                    )
                yield record, f"{path}:{last}"
        except UnicodeDecodeError as error:
            raise DataError(f"{flag}={path}: not UTF-8 after line {last}: {error}") from None
        except csv.Error as error:
            raise DataError(f"{flag}={path}: near line {reader.line_num}: {error}") from None
    if not last:
        raise DataError(f"{flag}={path}: the file has no rows below its first one")


def read_parquet(path: Path, flag: str) -> Records:
    """Read rows of a Parquet file, a thousand at a time.

    Raises:
        DataError: The file is damaged or has no rows.
    """
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=_PARQUET_BATCH_ROWS):
            for record in batch.to_pylist():
                number += 1
                yield record, f"{path}, row {number}"
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{flag}={path}: not a readable Parquet file: {error}") from None
    if not number:
        raise DataError(f"{flag}={path}: the file has no rows")


def read_document(path: Path, flag: str) -> Records:
    """Read a whole text file as one record.

    Raises:
        DataError: The file is not UTF-8 or blank.
    """
    text = _decode(path.read_bytes(), f"{flag}={path}", "utf-8-sig")
    if not text.strip():
        raise DataError(f"{flag}={path}: the file is blank")
    yield {"text": text}, str(path)


READERS: dict[str, Callable[[Path, str], Records]] = {
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".txt": read_document,
    ".md": read_document,
}
"""By the end of the file's name."""


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(path))
    return path.open("rb")


def _read_lines(file: IO[bytes], path: Path, flag: str) -> Iterator[bytes]:
    try:
        yield from file
    except (OSError, EOFError) as error:  # A damaged or cut-off gzip file.
        raise DataError(f"{flag}={path}: cannot be read to its end: {error}") from None


def _decode(data: bytes, where: str, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        shown = data[max(0, error.start - 20) : error.start + 20]
        raise DataError(f"{where}: not UTF-8 at byte {error.start}: {shown!r}") from None


def _parse_object(text: str, where: str) -> dict[str, Any]:
    text = text.strip()
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        # Its own text counts lines from the start of this line, which would mislead.
        reason = f"{error.msg} at character {error.colno}"
        raise DataError(f"{where}: not JSON ({reason}): {text!r:.100}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}): {text!r:.100}") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: not an object: {text!r:.100}")
    return record

"""Parquet and Arrow files, a few hundred rows at a time.

Every batch is checked in full before a value is touched: Arrow trusts the offsets in an IPC file,
and a flipped bit in one would read foreign memory.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bigft.data.readers.raw import RawRow, Unreadable, make_unreadable
from bigft.errors import DataError

_BATCH_ROWS = 256
# Column chunks are read through a buffer of this size, not in full: row groups reach gigabytes.
_BUFFER_BYTES = 1 << 20

_Payload = Mapping[str, Any] | Unreadable


def read_parquet(path: Path, flag: str) -> Iterator[RawRow]:
    """Read the rows of a Parquet file.

    Raises:
        DataError: The file is damaged, names a column twice or has no rows.

    Memory: 256 rows, and a buffer per column.
    """
    from pyarrow import parquet

    with _naming_damage(path, flag, "Parquet"):
        file = parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES)
        _check_names(file.schema_arrow.names, path, flag)
        yield from _read_batches(file.iter_batches(batch_size=_BATCH_ROWS), path, flag)


def read_arrow(path: Path, flag: str) -> Iterator[RawRow]:
    """Read the rows of an Arrow IPC file (also called Feather) or IPC stream.

    Raises:
        DataError: The file is damaged, names a column twice or has no rows.

    Memory: one record batch if it is compressed, else 256 rows; the rest is mapped.
    """
    import pyarrow

    with _naming_damage(path, flag, "Arrow"), pyarrow.memory_map(str(path)) as file:
        start = file.read(6)
        file.seek(0)
        if start.startswith(b"FEA1"):
            raise DataError(
                f"{flag}={path}: version 1 of Feather; write it anew with "
                "pyarrow.feather.write_feather or as Parquet"
            )
        if start == b"ARROW1":
            reader = pyarrow.ipc.open_file(file)
            batches = (reader.get_batch(n) for n in range(reader.num_record_batches))
        else:
            reader = pyarrow.ipc.open_stream(file)
            batches = iter(reader)
        _check_names(reader.schema.names, path, flag)
        yield from _read_batches(batches, path, flag)


def _read_batches(batches: Iterable[Any], path: Path, flag: str) -> Iterator[RawRow]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            for payload in _convert(batch.slice(start, _BATCH_ROWS)):
                number += 1
                yield RawRow(payload, f"{path}, row {number}")
    if not number:
        raise DataError(f"{flag}={path}: the file has no rows")


def _convert(batch: Any) -> list[_Payload]:
    """Turn a batch into records, one by one when not all of them can be had."""
    try:
        batch.validate(full=True)
        return batch.to_pylist()  # type: ignore[no-any-return]
    except _find_damage() as error:
        if batch.num_rows == 1:
            return [make_unreadable(f"a value cannot be read: {error}", "")]
    return [_convert(batch.slice(number, 1))[0] for number in range(batch.num_rows)]


def _check_names(names: list[str], path: Path, flag: str) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{flag}={path}: more than one column is called {repeated[0]!r}")


@contextmanager
def _naming_damage(path: Path, flag: str, kind: str) -> Iterator[None]:
    try:
        yield
    except _find_damage() as error:
        raise DataError(f"{flag}={path}: not a readable {kind} file: {error}") from error


def _find_damage() -> tuple[type[Exception], ...]:
    import pyarrow

    # Values beyond Python's range (a year above 9999) are ValueErrors and OverflowErrors.
    return (pyarrow.ArrowException, OSError, ValueError, OverflowError)

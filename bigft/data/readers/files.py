"""The table of readers: by the end of a file's name, a path in and raw rows out."""

from collections.abc import Callable, Iterator
from pathlib import Path

from bigft.data.readers.columnar import read_arrow, read_parquet
from bigft.data.readers.compression import COMPRESSIONS
from bigft.data.readers.document import read_document
from bigft.data.readers.json_lines import read_json_lines
from bigft.data.readers.json_values import read_json_values
from bigft.data.readers.raw import RawRow
from bigft.data.readers.table import read_csv, read_tsv

Reader = Callable[[Path, str], Iterator[RawRow]]

_TEXTS: dict[str, Reader] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json_values,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".txt": read_document,
    ".md": read_document,
}
_COLUMNAR: dict[str, Reader] = {
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
}

READERS: dict[str, Reader] = _COLUMNAR | {
    kind + compression: reader
    for compression in ("", *COMPRESSIONS)
    for kind, reader in _TEXTS.items()
}
"""By `find_suffix`; a reader takes the path and the flag that named it."""

DOCUMENTS = frozenset(suffix for suffix, reader in READERS.items() if reader is read_document)
"""Of which a file is one row."""

KNOWN_KINDS = f"{', '.join((*_TEXTS, *_COLUMNAR))}; texts also with {', '.join(COMPRESSIONS)}"
"""For error messages."""


def find_suffix(path: Path) -> str:
    """Find the ending that decides the reader: `.jsonl`, or `.jsonl.gz` with its inner one."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(
        suffixes[-2:] if suffixes[-1:] and suffixes[-1] in COMPRESSIONS else suffixes[-1:]
    )

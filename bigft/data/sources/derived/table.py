"""The table of the derived sets: `--data builtin/NAME`."""

import hashlib
from collections.abc import Callable, Iterator, Mapping

from bigft.config.hints import suggest
from bigft.data.sources.corpus import build_stripped_error, compute_corpus_digest
from bigft.data.sources.derived import labels, reading, texts
from bigft.data.sources.derived.rows import Row
from bigft.errors import DataError

PREFIX = "builtin/"

DERIVED: Mapping[str, Callable[[], Iterator[Row]]] = {
    "modules": labels.read_modules,
    "pairs": labels.read_pairs,
    "topics": labels.read_topics,
    "readability": labels.read_readability,
    "signatures": texts.read_signatures,
    "summaries": texts.read_summaries,
    "reading": reading.read_reading,
    "code": texts.read_code,
    "prose": texts.read_prose,
}

_VERSION = "1"
"""Part of the digests; to be raised whenever the rows change for the same sources."""

# A whole CPython gives more than 1,000 of each.
_MIN_ROWS = 100


def read_derived(name: str) -> Iterator[Row]:
    """Read the rows of a set in a fixed order: the documented name, and the record.

    Raises:
        DataError: This Python was installed without the sources of its standard library.

    Memory: all rows, at most about 5 MB (`code`).
    """
    rows = sorted(DERIVED[name](), key=lambda row: row[0])
    if len(rows) < _MIN_ROWS:
        raise build_stripped_error(f"its sources give only {len(rows)} rows of {PREFIX}{name}")
    yield from rows


def compute_derived_digest(name: str) -> str:
    """Compute a digest of the sources that a set is read from, another one for each set.

    Raises:
        DataError: There are no such sources.
    """
    content = f"{name}\0{_VERSION}\0{compute_corpus_digest()}"
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def build_unknown_error(name: str, flag: str) -> DataError:
    """Say which sets there are, and which is near.

    Args:
        name: What stands behind `builtin/`.
        flag: The setting that it stands in.
    """
    known = ", ".join(f"{PREFIX}{known}" for known in DERIVED)
    near = suggest(name, DERIVED, PREFIX)
    return DataError(f"{flag}={PREFIX}{name}: no such built-in data{near}; known: {known}")

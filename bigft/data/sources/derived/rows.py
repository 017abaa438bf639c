"""What the derived sets share: the form of a row, and choices that are the same on every run."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from bigft.data.sources.corpus import Docstring, read_docstrings

Row = tuple[str, dict[str, Any]]
"""The documented name that a row is made from, and its record."""

MAX_CHARACTERS = 2000
"""Of what stands before a label or an answer. About 500 tokens: what is to be learned is not cut
off at the usual lengths. 1.2% of the docstrings are longer."""


def read_short_docstrings() -> Iterator[Docstring]:
    """Read the docstrings that leave room for a label or an answer, sorted by name."""
    return (doc for doc in read_docstrings() if len(doc.text) <= MAX_CHARACTERS)


def keep_first(rows: Iterable[Row], column: str) -> Iterator[Row]:
    """Leave out rows that say the same in this column as an earlier one."""
    seen: set[str] = set()
    for name, record in rows:
        if record[column] not in seen:
            seen.add(record[column])
            yield name, record


def keep_clear(rows: Iterable[Row], asked: str, answer: str) -> Iterator[Row]:
    """Leave out repeated rows, and all rows of which several ask the same with other answers."""
    found = list(rows)
    first: dict[str, Any] = {}
    unclear = set()
    for _, record in found:
        if first.setdefault(record[asked], record[answer]) != record[answer]:
            unclear.add(record[asked])
    return keep_first((row for row in found if row[1][asked] not in unclear), asked)


def rank(name: str) -> bytes:
    """Give a name its place in an order that looks random and never changes."""
    return hashlib.blake2b(name.encode(), digest_size=8).digest()

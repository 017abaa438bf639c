"""Which labels the training data have, found before any of them becomes a row."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bigft.data.cache import default_cache_dir, write_text_atomically
from bigft.data.example import Label, Labelled
from bigft.data.formats.table import Recognizer
from bigft.data.layouts.coders import name_class
from bigft.data.readers.raw import parse
from bigft.data.section import DataSection
from bigft.data.sources.find import find_sources
from bigft.data.store.store import compute_store_digest
from bigft.errors import DataError

_VERSION = "1"
_MAX_CLASSES = 10_000


@dataclass(frozen=True)
class Labels:
    """The classes that rows name."""

    counts: dict[str, int]
    """Rows of each class, sorted: by their numbers where all names are numbers."""

    is_multiple: bool
    """Whether a row may name several, or none."""

    num_rows: int


def find_labels(section: DataSection) -> Labels:
    """Find the classes of the training data; rows that cannot be read are passed over.

    What was found is kept in the cache, so that the other ranks of a host need not read again.

    Raises:
        DataError: The data are missing, or no row has a label.
    """
    note = _find_note(section)
    if note.is_file():
        return Labels(**json.loads(note.read_text(encoding="utf-8")))
    counts: dict[str, int] = {}
    is_multiple, num_rows = False, 0
    unread: list[str] = []
    for label in read_labels(section, unread):
        is_multiple |= isinstance(label, list)
        num_rows += 1
        for one in label if isinstance(label, list) else [label]:
            name = name_class(one)
            counts[name] = counts.get(name, 0) + 1
        if len(counts) > _MAX_CLASSES:
            raise DataError(
                f"--data={section.train}: more than {_MAX_CLASSES:,} different labels; for numbers"
                " to be predicted use --task regression"
            )
    if not counts:
        raise DataError(
            f"--data={section.train}: no row has a label. Rows look like"
            ' {"text": "...", "label": "..."}; others: --data.columns.text COLUMN'
            f" --data.columns.label COLUMN{_show(unread)}"
        )
    found = Labels(_sort(counts), is_multiple, num_rows)
    write_text_atomically(note, json.dumps(vars(found)))
    return found


def count_targets(section: DataSection) -> int:
    """Count the numbers of the first label.

    Raises:
        DataError: The data are missing, or no row has a label.
    """
    unread: list[str] = []
    for label in read_labels(section, unread):
        return len(label) if isinstance(label, list) else 1
    raise DataError(
        f"--data={section.train}: no row has a number to be predicted. Rows look like"
        f' {{"text": "...", "label": 3.5}}; others: --data.columns.label COLUMN{_show(unread)}'
    )


def read_labels(section: DataSection, unread: list[str]) -> Iterator[Label | list[Label]]:
    """Read the label of every row that has one.

    Args:
        section: Names the data.
        unread: Gets the place and the reason of the first row that cannot be read.

    Raises:
        DataError: The data are missing.
    """
    recognizer = Recognizer(section.format, section.columns)
    for part in find_sources(section.train, "--data"):
        for source in part.sources:
            for raw in source.read():
                try:
                    _, example = recognizer.read(parse(raw))
                except (ValueError, DataError) as error:
                    # Judged when it is tokenised; here it only explains why there is no label.
                    unread += [] if unread else [f"{raw.origin}: {error}"]
                    continue
                if isinstance(example, Labelled):
                    yield example.label


def _show(unread: list[str]) -> str:
    return "".join(f". {reason}" for reason in unread)


def _find_note(section: DataSection) -> Path:
    parts = find_sources(section.train, "--data")
    found = [
        f"{source.kind}:{source.name}:{source.compute_fingerprint()}"
        for part in parts
        for source in part.sources
    ]
    request = [_VERSION, section.format, json.dumps(section.columns, sort_keys=True), *found]
    folder = default_cache_dir(section.loading.cache_dir) / "labels"
    return folder / f"{compute_store_digest(request)}.json"


def _sort(counts: dict[str, int]) -> dict[str, int]:
    is_number = all(name.lstrip("-").isdigit() for name in counts)
    names = sorted(counts, key=int) if is_number else sorted(counts)
    return {name: counts[name] for name in names}

"""A fixed choice of examples, by what they say."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from bigft.data.example import Example, compute_digest
from bigft.data.formats.table import Recognizer
from bigft.data.readers.raw import parse
from bigft.data.section import DataSection
from bigft.data.sources.find import Part, find_sources
from bigft.errors import DataError


@dataclass(frozen=True)
class Chosen:
    """An example and where it comes from."""

    example: Example
    digest: int
    """See `bigft.data.example.compute_digest`."""

    source: int
    """Number of the part of the data."""


def choose_examples(section: DataSection, limit: int | None) -> list[Chosen]:
    """Choose the examples with the smallest digests: the same ones for every model and order.

    A larger choice holds every smaller one, and equal rows are one example.

    Args:
        section: Names the data in `train`; its cleaning does not matter.
        limit: How many; None for all.

    Returns:
        Sorted by their digests, so that any first part of them is as good as a random one.

    Raises:
        DataError: The data are missing.

    Memory: the chosen examples.
    """
    parts = find_sources(section.train, "--data")
    # Equal digests are equal examples: the first one stays.
    entries = _keep_first(_read(parts, section), limit)
    return sorted(entries, key=lambda chosen: chosen.digest)


def _keep_first(found: Iterator[Chosen], limit: int | None) -> list[Chosen]:
    kept: dict[int, Chosen] = {}
    largest: list[int] = []
    for chosen in found:
        if chosen.digest in kept:
            continue
        if limit is not None and len(kept) == limit:
            if chosen.digest > -largest[0]:
                continue
            del kept[-heapq.heappop(largest)]
        kept[chosen.digest] = chosen
        heapq.heappush(largest, -chosen.digest)
    return list(kept.values())


def _read(parts: list[Part], section: DataSection) -> Iterator[Chosen]:
    recognizer = Recognizer(section.format, section.columns)
    for number, part in enumerate(parts):
        for source in part.sources:
            for raw in source.read():
                try:
                    _, example = recognizer.read(parse(raw))
                except (ValueError, DataError):
                    continue  # Judged, with its place, when it is tokenised.
                yield Chosen(example, compute_digest(example), number)

"""A fixed choice of examples, by what they say."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bigft.data.clean.build import Cleaner
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


def find_examples(
    spec: str, flag: str, section: DataSection, digests: Sequence[int]
) -> list[Chosen]:
    """Find examples by their digests, cleaned as they are for training.

    Reads until all are found, so all of the data at worst.

    Args:
        spec: Names the data.
        flag: The setting that does.
        section: How they are read and cleaned.
        digests: Of the examples, each once.

    Returns:
        In the order of `digests`; without those that are not there.

    Raises:
        DataError: The data are missing.
    """
    wanted, found = set(digests), dict[int, Chosen]()
    parts = find_sources(spec, flag, weighted=flag == "--data")
    for chosen in _read(parts, section, Cleaner(section.clean)):
        if chosen.digest in wanted:
            found.setdefault(chosen.digest, chosen)
            if len(found) == len(wanted):
                break
    return [found[digest] for digest in digests if digest in found]


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


def _read(
    parts: list[Part], section: DataSection, cleaner: Cleaner | None = None
) -> Iterator[Chosen]:
    recognizer = Recognizer(section.format, section.columns)
    for number, part in enumerate(parts):
        for source in part.sources:
            for raw in source.read():
                try:
                    _, example = recognizer.read(parse(raw))
                except (ValueError, DataError):
                    continue  # Judged, with its place, when it is tokenised.
                cleaned = cleaner.clean(example) if cleaner else example
                if cleaned is not None:
                    yield Chosen(cleaned, compute_digest(cleaned), number)

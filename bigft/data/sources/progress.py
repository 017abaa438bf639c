"""A line now and then while a large source is tokenised."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bigft.data.readers.raw import RawRow
from bigft.data.sources.find import Source
from bigft.units import format_seconds

Tell = Callable[[str], None]
"""Shows a line to a person."""

_LINE_SECONDS = 10.0
_PLAIN = (".jsonl", ".ndjson")
"""Files whose rows are read as the bytes that stand in them."""


def tell_nobody(text: str) -> None:
    """Show nothing."""


class Progress:
    """Counts what is read of some sources, and tells what was tokenised every ten seconds.

    The share that is done is known of files: by the bytes of their rows where rows are read as
    they stand in the file, else by the files that were read to their end.
    """

    def __init__(self, name: str, sources: Sequence[Source], tell: Tell) -> None:
        """Take the sizes of the files; nothing is told before ten seconds are over."""
        self._name = name
        self._sources = sources
        self._tell = tell
        files = [Path(source.name) for source in sources if source.kind == "file"]
        # How much a hub id or a saved data set holds, nobody knows before the end.
        self._total = sum(map(_find_size, files)) if len(files) == len(sources) else 0
        self._complete = 0
        self._current = 0
        self._start = self._told = time.monotonic()

    def read(self) -> Iterator[RawRow]:
        """Read all sources, one after the other."""
        for source in self._sources:
            # The rows of a compressed file have more bytes than the file.
            is_plain = source.name.endswith(_PLAIN)
            for raw in source.read():
                if is_plain and isinstance(raw.payload, bytes):
                    self._current += len(raw.payload)
                yield raw
            if self._total:
                self._complete, self._current = self._complete + _find_size(Path(source.name)), 0

    def show(self, rows: int) -> None:
        """Tell how far it is, unless that was told just now.

        Args:
            rows: Raw rows that were tokenised so far.
        """
        now = time.monotonic()
        if now - self._told < _LINE_SECONDS:
            return
        self._told = now
        seconds = now - self._start
        text = f"tokenising {self._name}: {rows:,} rows, {rows / seconds:,.0f} rows/s"
        share = (self._complete + self._current) / self._total if self._total else 0.0
        if share:
            text += f", {share:.0%} read, {format_seconds(seconds / share - seconds)} left"
        self._tell(text)


def _find_size(file: Path) -> int:
    return file.stat().st_size

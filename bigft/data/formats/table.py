"""The table of formats, and how the one of a row is recognised from its columns."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import Any, cast

from bigft.config.hints import suggest
from bigft.data.example import Example
from bigft.data.formats.checks import EmptyTextError
from bigft.data.formats.hints import describe_columns, explain_ambiguous, explain_unknown
from bigft.data.formats.shape import Format, Reading
from bigft.errors import DataError

FORMATS = {
    "chat": "bigft.data.formats.chat",
    "sharegpt": "bigft.data.formats.sharegpt",
    "instruct": "bigft.data.formats.instruct",
    "pairs": "bigft.data.formats.pairs",
    "labelled": "bigft.data.formats.labelled",
    "translation": "bigft.data.formats.translation",
    "text": "bigft.data.formats.text",
}

# What says more about the row wins: turns over two columns made from them, and anything over
# `text`, which is its rendered form then.
_RANKS = {"chat": 0, "sharegpt": 0, "text": 2}

_MAX_KNOWN = 10_000
"""Sets of columns that a recogniser remembers; rows of one file have a handful."""


@cache
def load_format(name: str) -> Format:
    """Import one format by its name in `FORMATS`."""
    return cast(Format, import_module(FORMATS[name]))


@dataclass(frozen=True)
class _Decision:
    reading: Reading
    is_lowered: bool
    """Whether the columns have to be written in lower case first."""


class Recognizer:
    """Turns rows into examples; what a set of columns means is decided once and remembered."""

    def __init__(
        self, format: str = "auto", columns: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Choose among the formats.

        Args:
            format: A name in `FORMATS`, or `auto` for all of them.
            columns: A name that the format knows, and the row's column to read for it;
                `translation.en` is the key `en` of the objects in `translation`.

        Raises:
            DataError: There is no such format, or it knows no such name.
        """
        if format != "auto" and format not in FORMATS:
            near = suggest(format, FORMATS)
            known = ", ".join(("auto", *FORMATS))
            raise DataError(f"--data.format {format}: no such format{near}; known: {known}")
        self._names = tuple(FORMATS) if format == "auto" else (format,)
        self._columns = dict(columns)
        self._decisions: dict[tuple[str, ...], _Decision] = {}
        self._check_names()

    def read(self, record: Mapping[str, Any]) -> tuple[str, Example]:
        """Return the format's name and the example that a row holds.

        Raises:
            ValueError: The row is bad.
            DataError: No format fits the columns, or more than one.
        """
        if not isinstance(record, Mapping):
            raise ValueError("a row has to be an object with columns")
        if not record:
            raise EmptyTextError("the row is empty")
        if self._columns:
            record = self._rename(record)
        # A list and no generator: this runs for every row, and is twice as fast.
        columns = tuple([name for name, value in record.items() if value is not None])
        decision = self._decisions.get(columns) or self._decide(record, columns)
        if decision.is_lowered:
            record = _lower(record)
        reading = decision.reading
        return reading.name, load_format(reading.name).read(record, reading.shape)

    def _decide(self, record: Mapping[str, Any], columns: tuple[str, ...]) -> _Decision:
        lowered = _lower(record)
        for candidate in (record, lowered):
            filled = {name for name, value in candidate.items() if value is not None}
            readings = self._find_readings(filled)
            fitting = [r for r in readings if load_format(r.name).fits(candidate, r.shape)]
            if fitting:
                decision = _Decision(self._choose(fitting, filled), candidate is lowered)
                if len(self._decisions) < _MAX_KNOWN:
                    self._decisions[columns] = decision
                return decision
        for candidate in (record, lowered):
            # The reader will say what is wrong with the values. Not remembered: the next row with
            # these columns may be a good one, of another reading.
            for reading in self._find_readings(set(candidate)):
                return _Decision(reading, candidate is lowered)
        raise DataError(explain_unknown(list(map(str, record)), self._find_shapes(), self._names))

    def _choose(self, readings: list[Reading], columns: set[str]) -> Reading:
        rank = min(_rank(reading) for reading in readings)
        best = [reading for reading in readings if _rank(reading) == rank]
        left = [reading for reading in best if not any(_covers(o, reading) for o in best)]
        if len(left) > 1:
            raise DataError(explain_ambiguous(sorted(columns), left))
        return left[0]

    def _find_readings(self, columns: set[str]) -> list[Reading]:
        """Find what has all its columns here, and a place for all columns that were named."""
        named = set(self._columns)
        return [
            reading
            for reading in self._find_shapes()
            if columns.issuperset(reading.shape.needed)
            and named.issubset((*reading.shape.needed, *reading.shape.optional))
        ]

    def _find_shapes(self) -> Iterator[Reading]:
        for name in self._names:
            yield from (Reading(name, shape) for shape in load_format(name).SHAPES)

    def _rename(self, record: Mapping[str, Any]) -> dict[str, Any]:
        taken = {column: _look_up(record, column, name) for name, column in self._columns.items()}
        moved = set(taken) | set(self._columns)
        renamed = {name: value for name, value in record.items() if name not in moved}
        return {**renamed, **{name: taken[column] for name, column in self._columns.items()}}

    def _check_names(self) -> None:
        shapes = [reading.shape for reading in self._find_shapes()]
        known = list(dict.fromkeys(c for s in shapes for c in (*s.needed, *s.optional)))
        for name, column in self._columns.items():
            if name not in known:
                of = f" of the format {self._names[0]}" if len(self._names) == 1 else ""
                raise DataError(
                    f"--data.columns.{name} {column}: {name} is no name{of} that a column can be "
                    f"read for{suggest(name, known)}; known: {', '.join(known)}"
                )


def _rank(reading: Reading) -> int:
    return _RANKS.get(reading.name, 1)


def _covers(one: Reading, other: Reading) -> bool:
    """Whether one reading has a place for all that the other one needs, but not the reverse."""
    if one.name == "instruct" and other.name == "pairs":
        # A `prompt` beside an instruction with the same answer is its rendered form.
        return one.shape.needed[1] == other.shape.needed[1]
    ones, others = (set(r.shape.needed + r.shape.optional) for r in (one, other))
    return ones.issuperset(other.shape.needed) and not others.issuperset(one.shape.needed)


def _lower(record: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name).lower(): value for name, value in record.items()}


def _look_up(record: Mapping[str, Any], column: str, name: str) -> Any:
    if column in record:
        return record[column]
    outer, _, inner = column.partition(".")
    nested = record.get(outer)
    if inner and isinstance(nested, Mapping) and inner in nested:
        return nested[inner]
    raise DataError(
        f"--data.columns.{name} {column}: the row has no such column"
        f"{suggest(column, list(map(str, record)))}; it has {describe_columns(record)}"
    )

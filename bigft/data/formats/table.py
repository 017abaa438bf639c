"""The table of formats, and how one is recognised from the columns of a record."""

import difflib
from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any, Protocol, cast

from bigft.data.example import Example
from bigft.errors import DataError

FORMATS = {
    "chat": "bigft.data.formats.chat",
    "instruct": "bigft.data.formats.instruct",
    "text": "bigft.data.formats.text",
}


class Format(Protocol):
    """What a module in this folder offers."""

    NAME: str
    COLUMNS: tuple[str, ...]
    """Every column that tells this format from others, for suggestions."""

    def matches(self, columns: set[str]) -> bool:
        """Whether records with these columns are of this format."""

    def read(self, record: Mapping[str, Any]) -> Example:
        """Turn one record into an example; raise ValueError with the reason if it is bad."""


def load_format(name: str) -> Format:
    """Import one format by its name in `FORMATS`."""
    return cast(Format, import_module(FORMATS[name]))


def find_format(columns: Collection[str]) -> str:
    """Find the one format whose columns these are.

    Raises:
        DataError: No format or more than one matches.
    """
    names = set(columns)
    found = [name for name in FORMATS if load_format(name).matches(names)]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(sorted(names)) or "none"
    if found:
        raise DataError(
            f"the columns ({shown}) fit {len(found)} formats: {', '.join(found)}; "
            "remove the columns that are not meant"
        )
    raise DataError(
        f"no format fits the columns ({shown}); {_describe_nearest(names)}. Known: `messages`; "
        "`prompt` + `completion`; `prompt` + `response` or `answer`; `question` + `answer`; "
        "`instruction` (+ `input`) + `output` or `response`; `text`"
    )


def _describe_nearest(columns: set[str]) -> str:
    known = {column: name for name in FORMATS for column in load_format(name).COLUMNS}
    best = (0.0, "", "")
    for column in sorted(columns):
        for other in difflib.get_close_matches(column.lower(), known, n=1, cutoff=0.6):
            likeness = difflib.SequenceMatcher(None, column.lower(), other).ratio()
            best = max(best, (likeness, column, other))
    if not best[1]:
        return "none is near"
    _, column, other = best
    if column == other:
        return f"the nearest is `{known[other]}`, which needs more than `{column}`"
    return f"the nearest is `{known[other]}`: rename `{column}` to `{other}`"

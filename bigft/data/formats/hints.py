"""What to tell people whose columns fit no format, or more than one."""

import difflib
from collections.abc import Iterable, Sequence

from bigft.data.formats.shape import Reading

_MAX_SHOWN = 20
_MIN_LIKENESS = 0.4
"""Of a shape's columns, on average; one right column of two is 0.5."""

_KNOWN = (
    "Known: `messages` or `conversations`; `instruction` (+ `input`) + `output`; `prompt` + "
    "`completion` or `response`; `question` + `answer`; `text`; `text` + `label`; `source` + "
    "`target`"
)


EXAMPLES = {
    "chat": '{"messages": [{"role": "user", "content": "..."}, '
    '{"role": "assistant", "content": "..."}]}',
    "instruct": '{"instruction": "...", "input": "...", "output": "..."}',
    "pairs": '{"prompt": "...", "response": "..."}',
    "translation": '{"source": "...", "target": "..."}',
    "labelled": '{"text": "...", "label": "..."}',
    "text": '{"text": "..."}',
}
"""A row of the formats that people write most, as JSON."""


def is_about_columns(reason: str) -> bool:
    """Whether a row was rejected for the names of its columns, which all rows share."""
    return "the columns (" in reason or reason.startswith("--data.columns.")


def explain_formats(num_rows: int) -> str:
    """Say what rows look like, and which flags help those that look otherwise.

    Args:
        num_rows: How many were read, none of which fits.
    """
    shown = [f"    --data.format {name:<12} {row}" for name, row in EXAMPLES.items()]
    return "\n".join(
        [
            f"none of the rows that were read ({num_rows:,}) fits, so it may be that only the"
            " names of the columns are others: say which to read, for example with"
            " --data.columns.prompt ask --data.columns.response reply. Rows look like one of",
            *shown,
        ]
    )


def describe_columns(columns: Iterable[object]) -> str:
    """List columns, the first of them if there are many."""
    names = [str(name)[:40] for name in columns]
    more = [f"and {len(names) - _MAX_SHOWN} more"] if len(names) > _MAX_SHOWN else []
    return ", ".join(names[:_MAX_SHOWN] + more) or "none"


def explain_ambiguous(columns: Sequence[str], readings: Sequence[Reading]) -> str:
    """Say which readings are possible, and which flag decides."""
    shown = "; ".join(f"{reading.shape} ({reading.name})" for reading in readings)
    names = list(dict.fromkeys(reading.name for reading in readings))
    if len(names) == len(readings):
        flag = " or ".join(f"--data.format {name}" for name in names)
    else:
        flag = " or ".join(_name_columns(reading) for reading in readings[:2])
    return (
        f"the columns ({describe_columns(columns)}) fit {len(readings)} readings: {shown}; say "
        f"which is meant: {flag}"
    )


def explain_unknown(
    columns: Sequence[str], readings: Iterable[Reading], formats: Sequence[str]
) -> str:
    """Say what the nearest format would need."""
    whose = "no format fits" if len(formats) > 1 else f"the format {formats[0]} does not fit"
    nearest = _describe_nearest(columns, list(readings))
    return f"{whose} the columns ({describe_columns(columns)}); {nearest}. {_KNOWN}"


def _name_columns(reading: Reading) -> str:
    return " ".join(f"--data.columns.{name} {name}" for name in reading.shape.needed)


def _describe_nearest(columns: Sequence[str], readings: list[Reading]) -> str:
    """Find the shape with the fewest columns missing, then with the most similar ones."""
    lower = {column.lower(): column for column in columns}
    best: tuple[float, Reading | None, dict[str, str]] = (_MIN_LIKENESS, None, {})
    for reading in readings:
        near = {name: _find_like(name, lower) for name in reading.shape.needed}
        likeness = sum(score for score, _ in near.values()) / len(near)
        if likeness > best[0]:
            names = {name: column for name, (score, column) in near.items() if score}
            best = (likeness, reading, names)
    _, nearest, found = best
    if nearest is None:
        return "none is near; name columns with --data.columns.prompt COLUMN and the like"
    flags = [
        f"--data.columns.{name} {found.get(name, 'COLUMN')}"
        for name in nearest.shape.needed
        if found.get(name) != name
    ]
    return f"the nearest is `{nearest.name}` ({nearest.shape}); set {' '.join(flags)}"


def _find_like(name: str, columns: dict[str, str]) -> tuple[float, str]:
    near = difflib.get_close_matches(name, columns, n=1, cutoff=0.6)
    if not near:
        return 0.0, ""
    return difflib.SequenceMatcher(None, name, near[0]).ratio(), columns[near[0]]

"""What a selftest found, for people and for programs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bigft.units import format_seconds

AGREES, DIFFERS, FAILED, NOT_RUN = "agrees", "differs", "failed", "not run"


@dataclass(frozen=True)
class Outcome:
    """What became of one row."""

    row: str
    verdict: str
    problems: list[str] = field(default_factory=list)
    """What differs or went wrong, in words; of rows that did not run, what would repair that."""
    difference: dict[str, Any] | None = None
    """Of `bigft.selftest.agreement.Difference`."""
    seconds: float = 0.0


_REPAIR = (
    "do not trust such runs here. Install the versions of constraints.txt, remove the build cache"
    " (TORCH_EXTENSIONS_DIR, default ~/.cache/torch_extensions), and try again; report what is"
    " left with the output of `bigft selftest --json`"
)
_MOST_NAMES = 4


def is_ok(outcomes: Sequence[Outcome]) -> bool:
    """Whether every row that ran agrees, and one did."""
    ran = [one for one in outcomes if one.verdict != NOT_RUN]
    return bool(ran) and all(one.verdict == AGREES for one in ran)


def render_json(outcomes: Sequence[Outcome], seconds: float) -> str:
    """Return the one object of `--json`."""
    rows = [
        {
            "row": one.row,
            "verdict": one.verdict,
            "problems": one.problems,
            "difference": _without_infinity(one.difference),
            "seconds": round(one.seconds, 3),
        }
        for one in outcomes
    ]
    return json.dumps({"ok": is_ok(outcomes), "rows": rows, "seconds": round(seconds, 1)})


def explain(outcomes: Sequence[Outcome]) -> str:
    """Say what is wrong and what to do about it, where not all is well."""
    bad = [one.row for one in outcomes if one.verdict in (DIFFERS, FAILED)]
    if not bad:
        return "no row could run; what each needs is in the table"
    names = ", ".join(bad[:_MOST_NAMES]) + (", ..." if len(bad) > _MOST_NAMES else "")
    return f"{len(bad)} of {len(outcomes)} runs are not what plain torch does ({names}): {_REPAIR}"


def _without_infinity(difference: dict[str, Any] | None) -> dict[str, Any] | None:
    """JSON has no number for it."""
    if difference is None:
        return None
    return {name: None if v in (float("inf"), None) else v for name, v in difference.items()}


def render_table(outcomes: Sequence[Outcome], seconds: float, place: str) -> str:
    """Return a table with a line for each row, what is wrong, and a verdict."""
    head = ["row", "loss", "norm", "weights", "time", ""]
    lines = [[*_describe(one), one.verdict] for one in outcomes]
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    page = [_join(line, widths) for line in [head, *lines]]
    bad = [one for one in outcomes if one.verdict in (DIFFERS, FAILED)]
    page += [f"{one.row}: {problem}" for one in bad for problem in one.problems]
    skipped: dict[str, list[str]] = {}
    for one in (one for one in outcomes if one.verdict == NOT_RUN):
        for problem in one.problems:
            skipped.setdefault(problem, []).append(one.row)
    page += [f"not run, {len(rows)} rows: {problem}" for problem, rows in skipped.items()]
    return "\n".join([*page, summarise(outcomes, seconds, place)])


def summarise(outcomes: Sequence[Outcome], seconds: float, place: str) -> str:
    """Return the last line."""
    counts = dict.fromkeys((AGREES, DIFFERS, FAILED, NOT_RUN), 0)
    for one in outcomes:
        counts[one.verdict] += 1
    said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"{said}; {place}, {format_seconds(seconds)}"


def _describe(one: Outcome) -> list[str]:
    found = one.difference
    numbers = (
        ["-"] * 3 if found is None else [f"{found[n]:.0e}" for n in ("loss", "norm", "weights")]
    )
    return [one.row, *numbers, f"{one.seconds:.1f} s"]


def _join(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    return "  ".join([first, *rest]).rstrip()

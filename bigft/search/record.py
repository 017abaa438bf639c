"""What is known of a trial, and how trials are ordered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["waiting", "running", "complete", "pruned", "failed"]
_ORDER: tuple[State, ...] = ("complete", "pruned", "running", "waiting", "failed")


@dataclass(frozen=True)
class Record:
    """One trial as the study knows it."""

    number: int
    """From 1; the name of its folder."""

    state: State
    value: float | None = None
    """The metric's last value; of a pruned trial the last one before its end."""

    settings: Mapping[str, str] = field(default_factory=dict)
    """Searched path -> value as typed."""

    is_baseline: bool = False
    """Whether the settings are those as they stand, without the search."""

    seconds: float = 0.0
    exit_code: int | None = None
    reason: str = ""
    """Last words of a trial that failed."""

    reports: Mapping[int, float] = field(default_factory=dict)
    """Step -> metric, before the end."""

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` says of it."""
        return {
            "trial": self.number,
            "state": self.state,
            "value": self.value,
            "settings": dict(self.settings),
            "baseline": self.is_baseline,
            "seconds": round(self.seconds, 1),
            "exit_code": self.exit_code,
            "reason": self.reason,
        }


def rank(records: Sequence[Record], *, maximize: bool) -> list[Record]:
    """Return trials best first; those that did not finish come after all that did."""

    def key(record: Record) -> tuple[int, float, int]:
        value = float("inf") if record.value is None else record.value
        signed = -value if maximize and record.value is not None else value
        return _ORDER.index(record.state), signed, record.number

    return sorted(records, key=key)


def find_best(records: Sequence[Record], *, maximize: bool) -> Record | None:
    """Return the best finished trial; None when none has finished."""
    ranked = rank([r for r in records if r.state == "complete"], maximize=maximize)
    return ranked[0] if ranked else None


def find_baseline(records: Sequence[Record]) -> Record | None:
    """Return the trial of the settings as they stand."""
    return next((record for record in records if record.is_baseline), None)

"""Where each rank of one host stands, read from the notes that it leaves in shared memory."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from bigft.distributed.place import Facts, describe_place

STEADY = ("data", "forward", "backward", "optimizer", "between steps")
"""Phases of a step, in their order."""

_STEP = (int, type(None))
_KINDS = ((int,), (int,), (str,), _STEP, _STEP, _STEP, (str,), (str,), (int,))
_WORDS = 200


@dataclass(frozen=True)
class Standing:
    """One rank, at one moment."""

    rank: int
    pid: int
    phase: str
    step: int | None
    first_step: int | None
    """The first one of this start."""
    total_steps: int | None
    mark: str
    """Another one whenever the rank has moved."""
    state: str
    """The letter of its process: `T` when it is stopped; `?` when it has gone."""
    rss_bytes: int
    where: str = ""
    """Its innermost Python function, once it has not moved for some time."""
    waits: bool = False
    """Whether that one waits for other ranks."""

    def to_row(self) -> list[Any]:
        """Return plain values for a message."""
        return list(astuple(self))

    @classmethod
    def from_row(cls, row: object) -> "Standing":
        """Read what `to_row` returned.

        Raises:
            ValueError: It is something else.
        """
        kinds = (*_KINDS, (str,), (bool,))
        if not isinstance(row, list) or len(row) != len(kinds):
            raise ValueError("no row")
        for value, kind in zip(row, kinds, strict=True):
            if not isinstance(value, kind) or (isinstance(value, str) and len(value) > _WORDS):
                raise ValueError("no row")
        return cls(*row)

    @property
    def is_stopped(self) -> bool:
        """Whether a signal has stopped its process."""
        return self.state == "T"

    @property
    def place(self) -> str:
        """Where it stands, in words."""
        facts: Facts = {"phase": self.phase, "total_steps": self.total_steps or "?"}
        return describe_place(facts if self.step is None else {**facts, "step": self.step})


def survey(ranks: Mapping[int, int], read: Callable[[int], Facts]) -> list[Standing]:
    """Look at all ranks of this host.

    Args:
        ranks: Rank -> process id.
        read: Gives the notes of a rank.
    """
    return [_look(rank, pid, read(rank)) for rank, pid in ranks.items()]


def _look(rank: int, pid: int, facts: Facts) -> Standing:
    return Standing(
        rank,
        pid,
        str(facts.get("phase", "running"))[:_WORDS],
        _read_count(facts.get("step")),
        _read_count(facts.get("first_step")),
        _read_count(facts.get("total_steps")),
        f"{facts.get('since')} {facts.get('step')} {facts.get('moves')}",
        read_state(pid) or "?",
        int(facts.get("rss_bytes", 0)),
        str(facts.get("where", ""))[:_WORDS],
        bool(facts.get("waits", False)),
    )


def _read_count(value: object) -> int | None:
    return value if isinstance(value, int) else None


def read_state(pid: int) -> str | None:
    """Return the letter of a process's state; None when it has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return None
    return None if state in "ZX" else state


def name_ranks(ranks: Iterable[int]) -> str:
    """Write `rank 3`, or `ranks 0-3, 6`."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], rank]
        else:
            spans.append([rank])
    words = ", ".join("-".join(map(str, span)) for span in spans)
    return f"rank{'s' if len(spans) > 1 or len(spans[0]) > 1 else ''} {words}"


def describe_all(standings: Sequence[Standing]) -> str:
    """Say where ranks stand, those at the same place together."""
    places: dict[str, list[int]] = {}
    for one in standings:
        where = f", in {one.where}" if one.where else ""
        places.setdefault(f"{one.place}{where}", []).append(one.rank)
    return "; ".join(f"{name_ranks(ranks)} {place}" for place, ranks in places.items())

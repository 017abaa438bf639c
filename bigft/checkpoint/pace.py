"""How long ranks take to write their files, and who is slow: a disk says nothing about itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bigft.units import format_bytes, format_seconds

_TIMES = 3.0
"""So many times as long as usual is slow: disks that several write to vary by less."""

_LEAST_SECONDS = 2.0
"""More than usual, before anybody is told."""

_REMEMBERED_SAVES = 3
"""Without so many before it, a save has only the other ranks to be compared with."""


@dataclass(frozen=True)
class Written:
    """What one rank has written for one save, the wait for the disk in it."""

    seconds: float
    num_bytes: int


class Pace:
    """Compares ranks with each other, and a save with those before it."""

    def __init__(self, hosts: Sequence[str]) -> None:
        """Begin.

        Args:
            hosts: Rank -> name of its host.
        """
        self._hosts = hosts
        self._past: list[float] = []
        self._is_slow = False

    def judge(self, step: int, parts: Sequence[Written]) -> str | None:
        """Take one save.

        Args:
            step: Of the save.
            parts: Of all ranks, by rank.

        Returns:
            A warning that names the slowest rank; None while all is as usual, or after that has
            been said and until a save is as fast as usual again.
        """
        rank = max(range(len(parts)), key=lambda one: parts[one].seconds)
        slowest = parts[rank].seconds
        others = _find_others(parts, rank)
        past = self._past[-_REMEMBERED_SAVES:]
        text = None
        if others is not None and _is_slow(slowest, others):
            text = f"other ranks with as much to write took {format_seconds(others)}"
        elif len(past) == _REMEMBERED_SAVES and _is_slow(slowest, median(past)):
            text = f"the saves before took {format_seconds(median(past))}"
        was_slow, self._is_slow = self._is_slow, text is not None
        if text is None:
            self._past = [*past, slowest]
        if text is None or was_slow:
            return None
        return (
            f"warning: rank {rank} on host {self._hosts[rank]} took {format_seconds(slowest)} to"
            f" write its {format_bytes(parts[rank].num_bytes)} of step {step}; {text}. The disk is"
            " slow, or busy with something else"
        )


def _find_others(parts: Sequence[Written], rank: int) -> float | None:
    """Median over the other ranks that had about as much to write; None without any."""
    least = parts[rank].num_bytes / 2
    seconds = [p.seconds for n, p in enumerate(parts) if n != rank and p.num_bytes >= least]
    return median(seconds) if seconds else None


def _is_slow(seconds: float, usual: float) -> bool:
    return seconds > _TIMES * usual and seconds - usual >= _LEAST_SECONDS

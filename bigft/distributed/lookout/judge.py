"""What rank 0 concludes from where all ranks stand: nothing moves, and who is the cause.

Only arithmetic: who calls brings the reports and the time.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bigft.distributed.lookout.limits import STEPS, Limits
from bigft.distributed.lookout.standing import STEADY, Standing, describe_all
from bigft.units import format_bytes, format_seconds

_WARM_STEPS = 3
"""The first ones compile, and fill caches: they belong to the start."""

_REMEMBERED_STEPS = 51


@dataclass
class _Known:
    standing: Standing
    moved: float
    stopped: float | None = None
    """Since when its process has been stopped."""


class Judge:
    """All ranks of which anything is known."""

    def __init__(self, limits: Limits, hosts: Mapping[int, str], now: float) -> None:
        """Begin.

        Args:
            limits: How long they may stand still.
            hosts: Rank -> its host's name.
            now: Seconds of a clock that only goes forward, here and everywhere.
        """
        self._limits = limits
        self._hosts = hosts
        self._known: dict[int, _Known] = {}
        self._first_step: int | None = None
        self._latest: tuple[int, float] | None = None
        self._durations: deque[float] = deque(maxlen=_REMEMBERED_STEPS)
        self._began = now

    def hear(self, standings: Iterable[Standing], now: float) -> None:
        """Take a report of one host."""
        for one in standings:
            if one.rank not in self._hosts:
                continue
            known = self._known.setdefault(one.rank, _Known(one, now))
            if one.mark != known.standing.mark:
                known.moved = now
            known.stopped = (known.stopped or now) if one.is_stopped else None
            known.standing = one
            if one.step is not None:
                self._count(one.step, one.first_step, now)

    def forget(self, ranks: Iterable[int]) -> None:
        """Expect nothing more of some ranks."""
        for rank in ranks:
            self._known.pop(rank, None)

    def forgive(self, seconds: float) -> None:
        """Not count a time in which this process itself did not run, nor heard the others."""
        for known in self._known.values():
            known.moved += seconds
            if known.stopped is not None:
                known.stopped += seconds

    @property
    def step_seconds(self) -> float | None:
        """The usual time of a step; None before there is one."""
        first, latest = self._first_step, self._latest
        if first is None or latest is None or latest[0] - first < _WARM_STEPS:
            return None
        return median(self._durations)

    @property
    def patience(self) -> float:
        """How long a process may be silent whose host answers; 0: for ever."""
        usual = self.step_seconds
        if usual is None and self._durations:
            # Of the first steps the slowest counts: one of them compiles.
            usual = max(self._durations)
        return self._limits.silent(usual)

    def find_limit(self) -> tuple[float, str]:
        """Say how long nothing may move now, 0 for ever, and which setting says so."""
        usual = self.step_seconds
        standings = [known.standing for known in self._known.values()]
        if usual is None or any(one.step is None for one in standings):
            return self._limits.startup, "--watch.startup_seconds"
        if any(one.phase not in STEADY for one in standings):
            return self._limits.slow, "--watch.slow_seconds"
        if not self._limits.steady:
            return 0.0, ""
        text = f"--watch.steady_seconds, or {STEPS} steps of {format_seconds(usual)}"
        return max(self._limits.steady, STEPS * usual), text

    def judge(self, now: float) -> str | None:
        """Say what is wrong; None while all is well."""
        stopped = [
            known.standing
            for known in self._known.values()
            if known.stopped is not None and now - known.stopped >= self._limits.steady > 0
        ]
        if stopped:
            return self._describe(stopped, f"for {format_seconds(self._limits.steady)} now")
        limit, setting = self.find_limit()
        if not limit or not self._known:
            return None
        still = now - max(known.moved for known in self._known.values())
        if still < limit:
            return None
        return (
            f"nothing has moved for {format_seconds(still)} (limit {format_seconds(limit)},"
            f" {setting}): {self._blame()}"
        )

    def describe(self, ranks: Iterable[int]) -> str:
        """Say where ranks stood when they were last heard of; empty where nobody knows."""
        found = [self._known[rank].standing for rank in ranks if rank in self._known]
        return describe_all(found) if found else ""

    def _count(self, step: int, first: int | None, now: float) -> None:
        if self._first_step is None or self._latest is None:
            self._first_step = step if first is None else first
            self._latest = (step, now)
            # Fast ones were done before anybody looked: none took longer than all together.
            self._remember(step - self._first_step, now - self._began)
        elif step > self._latest[0]:
            before, then = self._latest
            self._remember(step - before, now - then)
            self._latest = (step, now)

    def _remember(self, steps: int, seconds: float) -> None:
        """Note steps between two looks: each counts, or one slow look would outweigh ten steps."""
        self._durations.extend([seconds / max(1, steps)] * min(steps, _REMEMBERED_STEPS))

    def _blame(self) -> str:
        standings = [self._known[rank].standing for rank in sorted(self._known)]
        guilty = find_guilty(standings)
        if not guilty:
            return f"{describe_all(standings)}; none is ahead of the others"
        others = [one for one in standings if one not in guilty]
        waiting = f"; the others wait: {describe_all(others)}" if others else ""
        return f"{self._describe(guilty)}{waiting}"

    def _describe(self, standings: Sequence[Standing], since: str = "") -> str:
        """Name the first few of some ranks with all that is known."""
        shown = []
        for one in standings[:8]:
            memory = f", {format_bytes(one.rss_bytes)}" if one.rss_bytes else ""
            who = f"rank {one.rank} on host {self._hosts[one.rank]} (pid {one.pid}{memory})"
            where = f", in {one.where}" if one.where else ""
            stopped = ", stopped by a signal (SIGSTOP)" if one.is_stopped else ""
            shown.append(f"{who} stands {one.place}{where}{stopped}")
        more = len(standings) - len(shown)
        text = "; ".join([*shown, *([f"and {more} more"] if more else [])])
        return f"{text} {since}".rstrip()


def find_guilty(standings: Sequence[Standing]) -> list[Standing]:
    """Find for whom the others wait: stopped, busy with something of its own, or behind.

    Returns:
        Nothing when all stand at the same place.
    """
    stopped = [one for one in standings if one.is_stopped]
    if stopped:
        return stopped
    busy = [one for one in standings if not one.waits]
    if 0 < len(busy) < len(standings):
        return busy
    places = [_order(one) for one in standings]
    if len(set(places)) > 1:
        last = min(places)
        return [one for one, place in zip(standings, places, strict=True) if place == last]
    return []


def _order(one: Standing) -> tuple[int, int]:
    phase = STEADY.index(one.phase) if one.phase in STEADY else len(STEADY)
    return (-1, 0) if one.step is None else (one.step, phase)

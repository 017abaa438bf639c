"""The hook that names a rank which is slower than the others, step after step."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from bigft.monitor.events import Events
from bigft.monitor.meters import PHASES
from bigft.trainer.hooks import StepReport
from bigft.trainer.rendezvous import PARTS, Rendezvous
from bigft.trainer.state import State
from bigft.units import format_seconds

_MOST = 0.9
"""Of the steps in a row: one that is fast by chance does not hide a rank that is slow."""

_FEW = 0.5
"""With so many slow ones among the last steps a rank keeps up again."""

_SHARE_OF_STEP = 0.05
"""A rank that is slow in what is a trifle of the step delays nobody."""

Tell = Callable[[str], None]
Numbers = npt.NDArray[np.float64]


class Stragglers:
    """Compares what each rank did by itself; who waits for another one is not slow.

    The numbers travel with the losses of the next step, so there is no exchange more.
    """

    def __init__(
        self,
        rendezvous: Rendezvous,
        hosts: Sequence[str],
        *,
        fraction: float,
        steps: int,
        is_rank_zero: bool,
        tell: Tell,
        events: Events,
        host_step: Callable[[], float] | None = None,
    ) -> None:
        """Take where the numbers come from, and where to speak.

        Args:
            rendezvous: Carries them.
            hosts: Name of each rank's host.
            fraction: How much longer than the median is slow.
            steps: In a row, before it is said.
            is_rank_zero: Whether this rank judges.
            tell: Shows a line.
            events: Keeps it.
            host_step: Seconds so far of an optimizer on the host, where `PhaseClock.own` has none.
        """
        self._rendezvous = rendezvous
        self._hosts = hosts
        self._fraction, self._num_steps = fraction, steps
        self._judges = is_rank_zero
        self._tell, self._events = tell, events
        self._host_step = host_step
        self._before = dict.fromkeys(PHASES, 0.0)
        self._rows: Numbers = np.zeros((steps, len(hosts), len(PARTS)))
        self._slow: npt.NDArray[np.bool_] = np.zeros((steps, len(hosts)), dtype=bool)
        self._count = 0
        self._named: set[int] = set()

    def started(self, state: State, total_steps: int) -> None:
        """Do nothing."""

    def stepped(self, state: State, report: StepReport) -> None:
        """Give this rank's numbers of the step, and judge those of all ranks of the one before."""
        own = dict(report.clock.own)
        if self._host_step is not None:
            own["optimizer"] += self._host_step()
        spent = {name: own[name] - self._before[name] for name in PHASES}
        self._before = own
        self._rendezvous.own = (
            spent["data"],
            spent["forward"] + spent["backward"],
            spent["optimizer"],
        )
        rows = self._rendezvous.own_of_all
        if self._judges and len(rows) == len(self._hosts) > 1:
            self._judge(np.asarray(rows, dtype=np.float64), state.step, report.seconds)

    def finished(self, state: State) -> None:
        """Do nothing."""

    def _judge(self, rows: Numbers, step: int, step_seconds: float) -> None:
        total = rows.sum(1)
        if not total.all():
            return  # A rank that has not measured anything yet.
        excess = total - _find_median(total)
        least = max(self._fraction * _find_median(total), _SHARE_OF_STEP * step_seconds)
        place = self._count % self._num_steps
        self._rows[place], self._slow[place] = rows, excess > least
        self._count += 1
        if self._count < self._num_steps:
            return
        shares = self._slow.mean(0)
        for rank in np.flatnonzero(shares >= _MOST).tolist():
            if rank not in self._named:
                self._named.add(rank)
                self._name(rank, step)
        for rank in [rank for rank in self._named if shares[rank] < _FEW]:
            self._named.remove(rank)
            self._events.write(step, "straggler_over", rank=rank, host=self._hosts[rank])
            self._tell(f"rank {rank} on host {self._hosts[rank]} keeps up again at step {step}")

    def _name(self, rank: int, step: int) -> None:
        means = self._rows.mean(0)
        totals = means.sum(1)
        usual, mine = _find_median(totals), float(totals[rank])
        parts = np.array([_find_median(means[:, number]) for number in range(len(PARTS))])
        worst = int(np.argmax(means[rank] - parts))
        self._events.write(
            step, "straggler", rank=rank, host=self._hosts[rank], seconds=mine,
            median_seconds=usual, part=PARTS[worst], part_seconds=float(means[rank, worst]),
            part_median_seconds=float(parts[worst]),
        )  # fmt: skip
        self._tell(
            f"warning: rank {rank} on host {self._hosts[rank]} is slow: its own work took"
            f" {_show(mine)} a step over the last {self._num_steps} steps,"
            f" {100 * (mine / usual - 1):.0f}% more than the median of all ranks ({_show(usual)});"
            f" most of that in {PARTS[worst]} ({_show(means[rank, worst])}, median"
            f" {_show(parts[worst])}). The other ranks wait for it"
        )


def _find_median(values: Numbers) -> float:
    """Take the lower one of two, so that of two ranks the fast one is the measure."""
    middle = (len(values) - 1) // 2
    return float(np.partition(values, middle)[middle])


def _show(seconds: float) -> str:
    return format_seconds(seconds) if seconds >= 1 else f"{1000 * seconds:.0f} ms"

"""The parts of a forecast: what takes how much, where, and when."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Where = Literal["device", "host", "nvme"]
Phase = Literal["build", "loss", "backward", "step"]

PHASES: tuple[Phase, ...] = ("build", "loss", "backward", "step")
"""The engine is built; the forward pass has ended; a layer's backward pass; the optimizer's
step."""


@dataclass(frozen=True)
class Item:
    """Something that takes room on one rank."""

    name: str
    where: Where
    num_bytes: int
    phases: tuple[Phase, ...] = PHASES
    is_pinned: bool = False
    """The system may not move it, and limits how much of it there is (`ulimit -l`)."""


def sum_phase(items: Iterable[Item], where: Where, phase: Phase) -> int:
    """Bytes at one place in one phase."""
    return sum(one.num_bytes for one in items if one.where == where and phase in one.phases)


def find_peak(items: Iterable[Item], where: Where) -> tuple[int, Phase]:
    """Bytes at one place when it is fullest, and when that is."""
    items = list(items)
    sums = {phase: sum_phase(items, where, phase) for phase in PHASES}
    phase = max(PHASES, key=lambda one: sums[one])
    return sums[phase], phase

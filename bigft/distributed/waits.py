"""How long this process has waited for other ranks, where waiting blocks the host (on CPUs).

Under ZeRO-3 a slow rank slows down all of them alike: only what is left of a step without the
waiting tells who it is. On an accelerator waits happen on the device, and nothing is seen here.
"""

import time
from typing import Any

import torch


class Waits:
    """Seconds that add up."""

    def __init__(self) -> None:
        """Begin with none."""
        self.seconds = 0.0


WAITS = Waits()
"""Of this process; it stays 0 until `measure_waits`."""


def measure_waits() -> None:
    """Begin to add up what every collective waits, those that DeepSpeed and torch begin included.

    All of them, also those that return only when they are done, end in `Work.wait`.
    """
    work: Any = torch.distributed.Work
    before = work.wait
    if getattr(before, "adds_up", False):
        return

    def wait(self: Any, *arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return before(self, *arguments, **named)
        finally:
            WAITS.seconds += time.perf_counter() - started

    wait.adds_up = True  # type: ignore[attr-defined]
    work.wait = wait

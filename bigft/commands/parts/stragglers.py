"""Who is slow: the hook that finds out, and what it measures by."""

import time
from typing import Any

import torch

from bigft.distributed.collectives import gather_objects
from bigft.distributed.processes import name_host
from bigft.distributed.waits import measure_waits
from bigft.distributed.world import World
from bigft.engine.engine import Engine
from bigft.log import Console
from bigft.monitor.events import Events
from bigft.monitor.section import WatchSection
from bigft.trainer.rendezvous import Rendezvous
from bigft.trainer.stragglers import Stragglers

_ON_HOST = ("HostAdamW", "DeepSpeedCPUAdam")


class HostStep:
    """Adds up the seconds of an optimizer that computes on the host beside an accelerator."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure every step from now on; of others than those on the host nothing."""
        self.seconds = 0.0
        if type(optimizer).__name__ in _ON_HOST:
            optimizer.register_step_pre_hook(self._begin)
            optimizer.register_step_post_hook(self._end)

    def read(self) -> float:
        """Return the seconds so far."""
        return self.seconds

    def _begin(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._started


def build_stragglers(
    section: WatchSection,
    engine: Engine,
    rendezvous: Rendezvous,
    events: Events,
    world: World,
    console: Console,
) -> Stragglers | None:
    """Build the hook where there is somebody to compare with. Collective: every rank.

    On an accelerator only what the host does is compared, data and an optimizer in host memory:
    what the device does is done behind Python's back, and waits for other devices there.
    """
    if world.size == 1 or not section.straggler_fraction:
        return None
    host_step = None
    if world.device.type == "cpu":
        measure_waits()
    else:
        host_step = HostStep(engine.inner_optimizer)
    return Stragglers(
        rendezvous,
        gather_objects(name_host()),
        fraction=section.straggler_fraction,
        steps=section.straggler_steps,
        is_rank_zero=world.is_rank_zero,
        tell=console.say,
        events=events,
        host_step=host_step.read if host_step else None,
    )

"""Who is slow: the hook that finds out, and what it measures by."""

import socket

from bigft.distributed.collectives import gather_objects
from bigft.distributed.waits import measure_waits
from bigft.distributed.world import World
from bigft.log import Console
from bigft.monitor.events import Events
from bigft.monitor.section import WatchSection
from bigft.trainer.rendezvous import Rendezvous
from bigft.trainer.stragglers import Stragglers


def build_stragglers(
    section: WatchSection, rendezvous: Rendezvous, events: Events, world: World, console: Console
) -> Stragglers | None:
    """Build the hook where there is somebody to compare with. Collective: every rank.

    On an accelerator only the time that the host takes for data is compared: what the device does
    is done behind Python's back, and waits for other devices there.
    """
    if world.size == 1 or not section.straggler_fraction:
        return None
    if world.device.type == "cpu":
        measure_waits()
    return Stragglers(
        rendezvous,
        gather_objects(socket.gethostname()),
        fraction=section.straggler_fraction,
        steps=section.straggler_steps,
        is_rank_zero=world.is_rank_zero,
        tell=console.say,
        events=events,
    )

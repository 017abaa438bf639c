"""This rank's part in watching all hosts of the run, as the ranks agree on it at their start."""

import time

from bigft.distributed.collectives import broadcast_object
from bigft.distributed.lookout.build import build_lookout, find_meeting_point, open_door
from bigft.distributed.lookout.limits import Limits
from bigft.distributed.lookout.neighbour import Neighbour
from bigft.distributed.lookout.parties import Ears, Lookout
from bigft.distributed.peers import Peers
from bigft.distributed.world import World


def open_lookout(
    world: World, peers: Peers, limits: Limits, ears: Ears
) -> tuple[Lookout, Neighbour | None]:
    """Let rank 0 listen, and tell the others where and with which token.

    Returns:
        The part of this rank, and what it looks after on its own host: the rank that speaks for it,
        unless that is this one.

    Collective: every rank.
    """
    hosts = peers.hosts
    opened = None
    if world.is_rank_zero and len(hosts) > 1:
        opened = open_door(find_meeting_point(), peers.own_addresses, limits.port)
        if opened is None:
            ears.warned("warning: other hosts are not watched: none of them can reach this one")
    listener, door = opened or (None, None)
    if len(hosts) > 1:
        door = broadcast_object(door)
    lookout = build_lookout(world.rank, hosts, limits, peers.survey, ears, (listener, door))
    own = next(host for host in hosts if world.rank in host.ranks)
    if world.rank == own.leader:
        return lookout, None
    return lookout, Neighbour(limits, own, world.rank, peers.read, time.monotonic())

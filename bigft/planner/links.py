"""How long collectives take: bytes over links, and hops.

    seconds of a call = start + hops inside hosts + hops between hosts + bytes / rate

the usual model of a fixed part and a part per byte. A ring of W ranks on H hosts makes W - 1 hops,
H - 1 of them between hosts, and twice as many where all ranks get a sum; a tree makes as many as it
is deep. The figures of GPUs are those by which NCCL itself chooses among its ways (`src/graph/
tuning.cc` of github.com/NVIDIA/nccl, 2.1x), and as there the fastest way counts: with 8,000 ranks
and small messages it is not the one with the highest rate. What they leave out: neighbours on the
same network, switches that cannot carry all hosts at once, and hosts that are late.
"""

import math
from dataclasses import dataclass

from bigft.planner.machine import Machine
from bigft.planner.traffic import Flow


@dataclass(frozen=True)
class Way:
    """One way of sending; seconds."""

    start: float
    inside: float
    """Of a hop between two ranks of a host."""

    between: float
    """Of a hop between two hosts."""

    share: float
    """Of the link's rate that it reaches."""

    is_tree: bool = False


_MICRO = 1e-6

NCCL = (
    Way(8.4 * _MICRO, 3.4 * _MICRO, 14.0 * _MICRO, 1.0),
    Way(10.0 * _MICRO, 1.9 * _MICRO, 4.0 * _MICRO, 0.92),
    Way(3.6 * _MICRO, 0.8 * _MICRO, 2.7 * _MICRO, 0.25),
    Way(4.4 * _MICRO, 28 * _MICRO, 28 * _MICRO, 0.9, is_tree=True),
    Way(4.4 * _MICRO, 1.2 * _MICRO, 8.5 * _MICRO, 0.8, is_tree=True),
)
"""Rings with the protocols Simple, LL128 and LL, and trees with Simple and LL128, over NVLink and
InfiniBand."""

GLOO = (Way(50 * _MICRO, 30 * _MICRO, 80 * _MICRO, 1.0),)
"""Rings over TCP, as ranks on CPUs have them. Rough: a small sum of two ranks of one host took 0.24
to 0.30 ms on a busy machine, and between hosts a network of 25 Gbit/s is assumed."""


def list_ways(machine: Machine) -> tuple[Way, ...]:
    """List the ways of sending that ranks have; a measured hop takes the place of a typical one."""
    ways = NCCL if machine.device == "cuda" else GLOO
    hop = machine.rates.hop
    if hop is None:
        return ways
    # Measured with small sums, of which the quickest way is known.
    quickest = min(way.between for way in ways)
    return tuple(
        Way(way.start, way.inside, way.between * hop.seconds / quickest, way.share, way.is_tree)
        for way in ways
    )


def time_flow(flow: Flow, machine: Machine) -> float:
    """Return the seconds of all calls of a flow, one after the other."""
    if not flow.calls:
        return 0.0
    rates = machine.rates
    seconds = flow.sent / rates.peer.per_second if flow.ranks > flow.hosts else 0.0
    seconds = max(seconds, flow.sent_between / rates.network.per_second)
    return min(
        flow.calls * (way.start + count_hops(flow, way)) + seconds / way.share
        for way in list_ways(machine)
        if flow.kind == "all_reduce" or not way.is_tree
    )


def count_hops(flow: Flow, way: Way) -> float:
    """Return the seconds of the hops of one call."""
    if way.is_tree:
        local = flow.ranks // flow.hosts
        return 2 * ((local - 1) * way.inside + math.ceil(math.log2(flow.hosts)) * way.between)
    if flow.kind == "all_to_all":
        # All at once.
        return way.between if flow.hosts > 1 else way.inside
    rounds = 2 if flow.kind == "all_reduce" else 1
    inside, between = flow.ranks - flow.hosts, flow.hosts - 1
    return rounds * (inside * way.inside + between * way.between)

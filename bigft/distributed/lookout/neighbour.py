"""A host's other ranks see whether the one that speaks for it still can.

It may be stopped or stuck: its process is there, but nobody outside hears of this host any more.
"""

from collections.abc import Callable

from bigft.distributed.lookout.limits import Limits
from bigft.distributed.lookout.parties import Host
from bigft.distributed.lookout.standing import read_state
from bigft.distributed.place import Facts, describe_place
from bigft.units import format_seconds


class Neighbour:
    """The first rank of this host, seen by another one."""

    def __init__(
        self, limits: Limits, host: Host, rank: int, read: Callable[[int], Facts], now: float
    ) -> None:
        """Take how long it may be silent, this host, who looks, and where the notes are."""
        self._limits, self._host, self._read = limits, host, read
        self.speaks = rank == min(r for r in host.ranks if r != host.leader)
        """Whether this rank says it for all on this host."""
        self._alive: object = None
        self._heard = self._looked = now

    def judge(self, now: float) -> str | None:
        """Say what is wrong with it; None while nothing is."""
        # A pause of this process itself is nobody's silence.
        self._heard += max(0.0, now - self._looked - 5.0)
        self._looked = now
        leader = self._host.leader
        facts = self._read(leader)
        # Notes that cannot be read say nothing: some builds of Python have none to share.
        if not facts or facts.get("alive") != self._alive:
            self._alive, self._heard = facts.get("alive"), now
        silent = now - self._heard
        if not self._limits.lost or silent < self._limits.lost:
            return None
        pid = self._host.ranks[leader]
        is_stopped = read_state(pid) == "T"
        if not is_stopped and silent < self._limits.silent(None):
            return None
        why = "is stopped by a signal (SIGSTOP)" if is_stopped else "is stuck in native code"
        return (
            f"rank {leader} on host {self._host.name} (pid {pid}) {why} for"
            f" {format_seconds(silent)}; it stands {describe_place(facts)}"
        )

"""Who the ranks are: on which host, under which addresses, and where those of this host stand.

Asked only when a run has failed: which rank did not come, whose connection was lost.
"""

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigft.distributed.board import open_board
from bigft.distributed.failures import find_addresses
from bigft.distributed.lookout.parties import Host
from bigft.distributed.lookout.standing import Standing, read_state, survey
from bigft.distributed.place import HERE, Facts, describe_place, read_place
from bigft.distributed.processes import name_host
from bigft.errors import LaunchError
from bigft.units import format_seconds

_ANSWER_SECONDS = 5.0
"""Ranks that failed together post within moments of each other."""


@dataclass(frozen=True)
class Peer:
    """One rank of the run."""

    rank: int
    kernel: str
    """The same for ranks that see each other's processes."""
    host: str
    addresses: tuple[str, ...]
    pid: int
    place: int | None
    """The descriptor of its notes, in its own process."""


def describe_self(rank: int, kernel: str) -> Peer:
    """Say what the others have to know of this rank."""
    return Peer(rank, kernel, name_host(), _find_addresses(), os.getpid(), HERE.fd)


def _find_addresses() -> tuple[str, ...]:
    # A requirement of DeepSpeed.
    import psutil

    with contextlib.suppress(OSError):
        rows = [row.address for rows in psutil.net_if_addrs().values() for row in rows]
        found = [row.partition("%")[0] for row in rows if not row.startswith(("127.", "::1"))]
        # NCCL names a host by its own name, whatever it is called in the hostfile.
        return (*found, socket.gethostname())
    return ()


class Peers:
    """All ranks of the run, seen from one of them."""

    def __init__(self, mine: Peer, everybody: Sequence[Peer]) -> None:
        """Keep what was exchanged, and hold on to the notes of the ranks of this host."""
        self._mine = mine
        self._everybody = {peer.rank: peer for peer in everybody}
        self._places: dict[int, int] = {}
        for peer in everybody:
            if peer.kernel == mine.kernel and peer.place is not None:
                with contextlib.suppress(OSError):
                    path = f"/proc/{peer.pid}/fd/{peer.place}"
                    self._places[peer.rank] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._board: Any = None
        with contextlib.suppress(LaunchError):
            self._board = open_board("bigft/last_words")

    def read(self, rank: int) -> Facts:
        """Read where a rank of this host stands or stood; nothing of other hosts."""
        fd = self._places.get(rank)
        return {} if fd is None else read_place(fd)

    def announce(self) -> None:
        """Tell the others that this rank has failed and where, so that it is not missed."""
        if self._board is not None:
            with contextlib.suppress(LaunchError):
                self._board.post(str(self._mine.rank), json.dumps(HERE.facts))

    @property
    def has_others(self) -> bool:
        """Whether this rank is not the only one."""
        return len(self._everybody) > 1

    @property
    def own_addresses(self) -> tuple[str, ...]:
        """By which this host may be reached."""
        return self._mine.addresses

    @property
    def hosts(self) -> list[Host]:
        """All hosts, that of rank 0 first."""
        found: dict[str, Host] = {}
        for rank, peer in sorted(self._everybody.items()):
            host = found.get(peer.kernel)
            ranks = {**(host.ranks if host else {}), rank: peer.pid}
            found[peer.kernel] = Host(host.name if host else peer.host, ranks)
        return list(found.values())

    def survey(self) -> list[Standing]:
        """Look where the ranks of this host stand."""
        ranks = {
            rank: peer.pid
            for rank, peer in self._everybody.items()
            if peer.kernel == self._mine.kernel
        }
        return survey(ranks, self.read)

    def dump_stacks(self, line: str = "") -> None:
        """Have every rank of this host write its Python stack into its log, after a line."""
        for rank in self._places:
            # Whoever has a run folder has a log, and a handler that writes there.
            folder = self.read(rank).get("folder")
            if folder is not None:
                if line:
                    _append(Path(folder) / "log" / f"rank_{rank:02d}.log", line)
                with contextlib.suppress(OSError):
                    os.kill(self._everybody[rank].pid, signal.SIGUSR2)

    def explain(self, text: str) -> str:
        """Name the ranks and hosts that an error is about, as far as anybody here knows."""
        found = [*self._name_addresses(text), *self._name_missing()]
        return "; ".join(found)

    def _name_addresses(self, text: str) -> list[str]:
        lines = []
        for address in dict.fromkeys(find_addresses(text)):
            there = [
                peer
                for peer in self._everybody.values()
                if address == peer.host or address in peer.addresses
            ]
            if there and there[0].kernel != self._mine.kernel:
                ranks = ", ".join(str(peer.rank) for peer in there)
                lines.append(f"{address} is host {there[0].host} (ranks {ranks})")
        return lines

    def _name_missing(self) -> list[str]:
        """Name who has not told that it failed, too: it has gone, or stands still."""
        deadline = time.monotonic() + _ANSWER_SECONDS
        steps: dict[int, int] = {}
        missing = []
        for rank, peer in sorted(self._everybody.items()):
            facts = self._ask(rank, max(0.0, deadline - time.monotonic()))
            if facts is None:
                missing.append(self._describe(peer))
            else:
                steps[rank] = int(facts.get("step", 0))
        if not missing and len(set(steps.values())) > 1:
            last = min(steps.values())
            behind = [str(rank) for rank, step in steps.items() if step == last]
            return [f"rank {', '.join(behind)} is behind, in step {last}"]
        return missing

    def _ask(self, rank: int, seconds: float) -> Facts | None:
        if rank == self._mine.rank:
            return HERE.facts
        with contextlib.suppress(LaunchError, ValueError):
            text = self._board.read(str(rank), seconds) if self._board is not None else None
            return None if text is None else dict(json.loads(text))
        return None

    def _describe(self, peer: Peer) -> str:
        who = f"rank {peer.rank} on host {peer.host}"
        if peer.kernel != self._mine.kernel:
            return f"{who} does not answer"
        state = read_state(peer.pid)
        if state is None:
            return f"{who} (pid {peer.pid}) has gone"
        facts = self.read(peer.rank)
        since = format_seconds(time.time() - facts["since"]) if "since" in facts else "some time"
        stopped = ", stopped by a signal (SIGSTOP)" if state in "Tt" else ""
        return f"{who} (pid {peer.pid}) stands {describe_place(facts)} for {since}{stopped}"


def _append(log: Path, line: str) -> None:
    with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")

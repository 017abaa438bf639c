"""A run from its first start to its last: ready hosts, jobs, ends, restarts."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from bigft.errors import CheckpointError
from bigft.launch.conduct import Ending
from bigft.launch.hostfile import Host
from bigft.launch.job import HostJob, plan_world
from bigft.launch.progress import Progress
from bigft.launch.restart import Restarts, choose_for_restart
from bigft.units import format_seconds

_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_GONE_SECONDS = 60.0
"""After the loss of a host: by then its ranks have left, if it lives behind a cut network."""
_HOST_PATIENCE_SECONDS = 1800.0
_RETRY_SECONDS = 10.0

Facts = Mapping[str, Any]
"""What a host says of itself: `routes` to the others, `free_port`."""

Tell = Callable[[str], None]


class Starter(Protocol):
    """Runs one start."""

    def run(self, jobs: Sequence[HostJob], *, is_local: bool = False) -> Ending:
        """Start all ranks, and wait until all have ended."""

    def stop(self, who: str) -> None:
        """Ask all ranks to commit and to leave; at the second call they are ended."""


@dataclass(frozen=True)
class Launch:
    """What is started, the same for every start."""

    hosts: Sequence[Host]
    words: Sequence[str]
    """The command line of bigft that every rank runs."""
    folder: str
    """Where it runs."""
    environ: Mapping[str, str]
    launch_id: str
    master_addr: str | None = None
    master_port: int | None = None
    max_restarts: int = 0
    min_hosts: int | None = None
    """None: all of them."""
    global_batch: int | None = None
    """Sequences per step of the first start; later ones keep it."""


@dataclass(frozen=True)
class Hands:
    """What the supervisor does to hosts; tests give others."""

    find_facts: Callable[[Sequence[Host]], dict[str, Facts]]
    """Asks hosts; those that do not answer are left out."""
    find_progress: Callable[[Sequence[Host]], Progress]
    clear: Callable[[Sequence[Host]], None]
    """Ends what earlier starts have left there."""
    make_conductor: Callable[[], Starter]
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic


@dataclass
class Supervisor:
    """Runs a launch. `stop` may be called by a signal handler."""

    launch: Launch
    hands: Hands
    tell: Tell
    is_local: bool = False
    """The only host is this one, and nothing goes over ssh."""
    stopped: str | None = None
    _conductor: Starter | None = field(default=None, init=False)

    def stop(self, who: str) -> None:
        """Ask the run to commit and to leave; at the second call it is ended."""
        self.stopped = self.stopped or who
        if self._conductor is not None:
            self._conductor.stop(who)

    def run(self, facts: Mapping[str, Facts]) -> Ending:
        """Start the run, and start it again as long as that is granted and helps.

        Args:
            facts: What the hosts have said of themselves just now.
        """
        launch = self.launch
        hosts: Sequence[Host] = launch.hosts
        progress = self.hands.find_progress(hosts)
        restarts = Restarts(launch.max_restarts, progress.commits)
        batch = progress.global_batch or launch.global_batch
        while True:
            ending = self._start(hosts, facts, restarts.used)
            self._tell_end(ending)
            if self.stopped is not None:
                return ending
            ended, known = self.hands.clock(), progress.commits
            if ending.code and launch.max_restarts:
                there = [host for host in hosts if host.name not in ending.lost]
                progress = progress.or_later(self.hands.find_progress(there))
                batch = progress.global_batch or batch
            # With some hosts left out, and no word of a full disk after a commit: each may keep its
            # own files.
            is_apart = (
                ending.code == CheckpointError.exit_code
                and len(hosts) < len(launch.hosts)
                and progress.commits == known
            )
            refusal = restarts.refuse(ending, progress.commits, may_be_elsewhere=is_apart)
            if refusal is not None:
                if refusal:
                    self.tell(f"not started again: {refusal}")
                return ending
            least = len(launch.hosts) if is_apart else launch.min_hosts
            found = self._wait_for_hosts(ended, restarts.delay_seconds, progress, batch, least)
            if found is None:
                # Whoever does not want to wait for the next start has lost nothing.
                return replace(ending, code=75) if self.stopped is not None else ending
            hosts, facts = found
            if ending.lost:
                progress = progress.or_later(self.hands.find_progress(hosts))
                restarts.see(progress.commits)

    def _rest(self, seconds: float) -> None:
        """Wait, but not after a request to stop."""
        while seconds > 0 and self.stopped is None:
            self.hands.sleep(min(seconds, 1.0))
            seconds -= 1.0

    def _start(self, hosts: Sequence[Host], facts: Mapping[str, Facts], number: int) -> Ending:
        jobs = plan_jobs(self.launch, hosts, facts)
        ranks = sum(host.slots for host in hosts)
        self.tell(
            f"start {number + 1}: {ranks} rank{'s' * (ranks > 1)} on {len(hosts)}"
            f" host{'s' * (len(hosts) > 1)}, meeting at {jobs[0].master_addr}:{jobs[0].master_port}"
        )
        self._conductor = self.hands.make_conductor()
        if self.stopped is not None:
            # The signal came before there was anything to stop.
            return Ending(75, stopped=self.stopped)
        try:
            return self._conductor.run(jobs, is_local=self.is_local)
        finally:
            self._conductor = None

    def _tell_end(self, ending: Ending) -> None:
        after = f"after {format_seconds(ending.seconds)}"
        if ending.first is None:
            self.tell(f"done {after}" if not ending.code else f"ended {after}")
        else:
            self.tell(f"ended with code {ending.code} {after}: {ending.first.describe()}")
        for host, count in ending.left.items():
            self.tell(f"warning: {count} processes on {host} could not be ended")

    def _wait_for_hosts(
        self,
        ended: float,
        delay: float,
        progress: Progress,
        batch: int | None,
        least: int | None,
    ) -> tuple[list[Host], dict[str, Facts]] | None:
        """Wait until there are hosts to go on with, and nothing of the last start is left there."""
        launch, hands = self.launch, self.hands
        least = min(least or len(launch.hosts), len(launch.hosts))
        self.tell(
            f"starting again in {format_seconds(delay)}"
            + (f", from step {progress.step}" if progress.commits else ", from the beginning")
        )
        self._rest(delay)
        is_told = False
        while self.stopped is None and hands.clock() - ended < _HOST_PATIENCE_SECONDS:
            facts = hands.find_facts(launch.hosts)
            chosen = choose_for_restart(launch.hosts, facts.keys(), least, batch)
            missing = [host.name for host in launch.hosts if host.name not in facts]
            # Behind a cut network the ranks of a host need a moment to see it, and to leave.
            is_settled = not missing or hands.clock() - ended >= _GONE_SECONDS
            if chosen is not None and is_settled:
                hands.clear([host for host in launch.hosts if host.name in facts])
                left_out = [host.name for host in launch.hosts if host not in chosen]
                if left_out:
                    self.tell(f"going on without {', '.join(left_out)}")
                return chosen, facts
            if missing and not is_told:
                why = f"{least} hosts are needed"
                if chosen is not None:
                    why = "behind a cut network its ranks may need a minute to see it, and to leave"
                self.tell(f"waiting for {', '.join(missing)}: {why}")
                is_told = True
            self._rest(_RETRY_SECONDS)
        if self.stopped is None:
            self.tell("not started again: too few hosts answer")
        return None


def plan_jobs(launch: Launch, hosts: Sequence[Host], facts: Mapping[str, Facts]) -> list[HostJob]:
    """Tell every host its part.

    Args:
        launch: What is started.
        hosts: Those of this start, in the order of their ranks.
        facts: What they have said of themselves: whom they reach by which address and interface.
    """
    first = hosts[0].name
    second = hosts[1].name if len(hosts) > 1 else first
    routes = facts.get(first, {}).get("routes", {}).get(second, {})
    address = "127.0.0.1" if len(hosts) == 1 else routes.get("address", first)
    if launch.master_addr and first == launch.hosts[0].name:
        # The user's word is for the first host: without it the ranks have to meet elsewhere.
        address = launch.master_addr
    port = launch.master_port or facts.get(first, {}).get("free_port", 29500)
    world = plan_world(hosts)
    return [
        HostJob(
            host=host.name,
            node_rank=place,
            world=world,
            master_addr=address,
            master_port=port,
            folder=launch.folder,
            words=launch.words,
            environ=_with_interface(launch, hosts, facts.get(host.name, {}), host.name),
            launch_id=launch.launch_id,
        )
        for place, host in enumerate(hosts)
    ]


def _with_interface(
    launch: Launch, hosts: Sequence[Host], facts: Facts, name: str
) -> dict[str, str]:
    """Add the network interface towards the other hosts, unless the user has named one."""
    environ = dict(launch.environ)
    if launch.global_batch:
        environ["BIGFT_GLOBAL_BATCH"] = str(launch.global_batch)
    peer = next((host.name for host in hosts if host.name != name), None)
    interface = facts.get("routes", {}).get(peer, {}).get("interface")
    if interface:
        for variable in _INTERFACES:
            environ.setdefault(variable, interface)
    return environ

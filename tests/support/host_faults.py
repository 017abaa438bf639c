"""What happens to hosts, and a campaign that lets it happen to one long run and judges every time.

After each fault, with nobody's help:
    N1, N6  the run goes on from the newest committed step, and has lost at most a save interval
    N2      every checkpoint with its final name is whole
    N4, N5  what is computed again is what was computed before, to the last bit
    N7      at most one folder of a failed save, no process of an earlier start on any host
    N8      the end is named with host or rank within the limits, and the exit code is right
"""

import contextlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launches import LaunchRun
from simulated_hosts import SimulatedHosts

from bigft.checkpoint.content import verify_files
from bigft.checkpoint.manifest import list_files, read_own_manifest
from bigft.errors import BigftError, CheckpointError

DEATH_SECONDS = 45.0
"""Until a dead rank or host is named: 30 s over a cut network, and a loaded machine."""
HANG_SECONDS = 65.0
"""Until one that stands still is: 60 s, and the pauses between two looks."""
RECOVERY_SECONDS = 300.0
LEFTOVERS = "of the last start had not left "
"""What the launcher says of processes that it had to end before the next one."""


@dataclass(frozen=True)
class Fault:
    """Something that happens to host `n`."""

    name: str
    happen: Callable[["Campaign", int], Callable[[], None] | None]
    """Lets it happen; returns what ends it, if it ends."""

    lasts: float = 0.0
    """Seconds until that."""
    limit: float = DEATH_SECONDS
    """Seconds until it has to be named."""
    code: int = 6
    """With which the start has to end, if it ends."""
    leaves: bool = False
    """Whether nobody is there to end the ranks, so that the next start has to do it."""
    is_harmless: bool = False
    """The run must go on, and has to say what is wrong."""
    is_survivable: bool = False
    """The run may go on, and has to say what it could not do."""


@dataclass
class Verdict:
    """How the run took a fault."""

    number: int
    fault: str
    host: int
    step: int
    """The newest step when it happened."""
    committed: int
    seed: int
    resumed: int | None = None
    named_seconds: float | None = None
    passed_seconds: float | None = None
    """Until a step after `step` was done, by the start that goes on: so much time was lost."""
    recovered_seconds: float | None = None
    """Until a new checkpoint was committed."""
    codes: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Campaign:
    """One run on simulated hosts, to which one fault after the other happens."""

    def __init__(
        self,
        hosts: SimulatedHosts,
        run: LaunchRun,
        save_steps: int,
        seed: int,
        log: Path,
        *,
        is_apart: bool = False,
    ) -> None:
        """Take a run that runs.

        Args:
            hosts: Where.
            run: Which one.
            save_steps: Between two of its checkpoints.
            seed: Of the moments.
            log: One JSON object for every fault.
            is_apart: Whether the folder around the run's is another disk on every host.
        """
        self.hosts, self.run = hosts, run
        self.folders = [run.folder]
        """The run's on every storage, as this machine sees them."""
        if is_apart:
            disks = [hosts.open_private(n + 1, run.folder.parent) for n in range(len(hosts.names))]
            self.folders = [disk / run.folder.name for disk in disks]
        self._save_steps = save_steps
        self._random = random.Random(seed)
        self._seed = seed
        self._log = log
        self._losses: dict[int, float] = {}
        self._position = 0
        self.verdicts: list[Verdict] = []

    # The state of the run, from outside.

    def read_new_rows(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl about steps; only what is new is read: hours of them are many."""
        file = self.folders[0] / "metrics.jsonl"
        if not file.exists():
            return []
        with file.open("rb") as stream:
            stream.seek(self._position)
            whole, newline, _ = stream.read().rpartition(b"\n")
        self._position += len(whole) + len(newline)
        rows = [json.loads(line) for line in whole.splitlines() if line.endswith(b"}")]
        return [row for row in rows if "loss" in row]

    def take(self, verdict: Verdict | None = None) -> int:
        """Look at new rows: a step that is repeated has to have the loss that it had."""
        for row in self.read_new_rows():
            step, loss = row["step"], row["loss"]
            before = self._losses.setdefault(step, loss)
            if before != loss and verdict is not None:
                verdict.problems.append(f"N4: step {step}: loss {loss!r}, before {before!r}")
        return max(self._losses, default=0)

    def committed(self) -> int:
        return max((int(name.removeprefix("step_")) for name in self._list_committed()), default=0)

    def _list_committed(self) -> set[str]:
        """Names of the checkpoints that are on every storage."""
        found = [folder.glob("checkpoints/step_*/manifest.json") for folder in self.folders]
        return set.intersection(*({path.parent.name for path in paths} for paths in found))

    def rest(self, seconds: float) -> None:
        """Let the run run."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.run.process.poll() is None:
            self.take()
            time.sleep(0.5)

    def describe(self, verdict: Verdict) -> str:
        """One line for people."""
        said = f"{verdict.number:3} {verdict.fault:24} host {verdict.host} step {verdict.step:5}"
        if verdict.resumed is not None:
            said += f" -> {verdict.resumed}"
        said += f", named {verdict.named_seconds} s, back after {verdict.passed_seconds} s"
        return f"{said}, codes {verdict.codes} {'; '.join(verdict.problems) or 'ok'}"

    # Faults.

    def suffer(self, fault: Fault, number: int, host: int) -> Verdict:
        """Let a fault happen at a random moment, wait until the run has got over it, and judge."""
        time.sleep(self._random.uniform(0, 2))
        step = highest = self.take()
        verdict = Verdict(number, fault.name, host, step, self.committed(), self._seed)
        said = len(self.run.said_by_errors())
        start = time.monotonic()
        mend = fault.happen(self, host)
        mend_at = start + fault.lasts if mend is not None else None
        deadline = start + RECOVERY_SECONDS + fault.lasts
        mended = verdict.committed
        while time.monotonic() < deadline:
            now = time.monotonic()
            if mend is not None and mend_at is not None and now >= mend_at:
                mend()
                mend = None
                mended = self.committed()
            text = self.run.said_by_errors()[said:]
            if verdict.named_seconds is None and self._is_named(text, host):
                verdict.named_seconds = round(now - start, 1)
            newest = self.take(verdict)
            goes_on = fault.is_harmless or (fault.is_survivable and mend is None)
            if goes_on or re.search(r"resumed from step_(\d+)", text):
                if verdict.passed_seconds is None and newest > highest:
                    verdict.passed_seconds = round(now - start, 1)
            else:
                highest = newest  # Some go on for a while, until they are stopped.
            if mend is None and self._has_passed(verdict, text, mended):
                verdict.recovered_seconds = round(now - start, 1)
                break
            if self.run.process.poll() is not None:
                verdict.problems.append(f"the launch has ended ({self.run.process.returncode})")
                break
            time.sleep(0.2)
        else:
            verdict.problems.append(f"no step after {step} in {deadline - start:.0f} s")
        if mend is not None:
            mend()
        self._judge(fault, verdict, self.run.said_by_errors()[said:])
        self.verdicts.append(verdict)
        with self._log.open("a") as log:
            log.write(json.dumps(asdict(verdict)) + "\n")
        return verdict

    def _has_passed(self, verdict: Verdict, text: str, mended: int) -> bool:
        """Whether the run goes on, with a commit after the step that `mended` is."""
        found = re.findall(r"resumed from step_(\d+)", text)
        if found:
            verdict.resumed = int(found[-1])
        # With a new commit: the next fault meets a run that runs.
        return verdict.passed_seconds is not None and self.committed() > mended

    def _is_named(self, text: str, host: int) -> bool:
        # What the next start says, and what torch says of itself, are no answer.
        lines = text.partition("starting again")[0].splitlines()
        said = [re.sub(r"^\[\S+\] |\(?\[W.*", "", line) for line in lines]
        name = re.compile(rf"\b(rank {host - 1}|{re.escape(self.hosts.names[host - 1])})\b")
        return any(name.search(line) for line in said)

    def _judge(self, fault: Fault, verdict: Verdict, text: str) -> None:
        problems = verdict.problems
        verdict.codes = [int(code) for code in re.findall(r"ended with code (\d+)", text)]
        if fault.is_harmless:
            if verdict.codes:
                problems.append(f"N8: ended with {verdict.codes}, and nothing was wrong")
            problems += self._check_naming(fault, verdict)
            return
        is_ended = bool(verdict.codes) or not fault.is_survivable
        if is_ended and set(verdict.codes) != {fault.code}:
            problems.append(f"N8: exit codes {verdict.codes}, not {fault.code}")
        if not fault.leaves:
            problems += [f"N7: {line}" for line in text.splitlines() if LEFTOVERS in line]
        problems += self._check_naming(fault, verdict)
        if is_ended:
            problems += self._check_loss(verdict)
        problems += self._check_folder()
        problems += self._check_orphans()

    def _check_naming(self, fault: Fault, verdict: Verdict) -> list[str]:
        if verdict.named_seconds is None:
            return ["N8: neither host nor rank was named"]
        if verdict.named_seconds > fault.limit:
            return [f"N8: named after {verdict.named_seconds} s, limit {fault.limit:.0f}"]
        return []

    def _check_loss(self, verdict: Verdict) -> list[str]:
        resumed, problems = verdict.resumed or 0, []
        if resumed < verdict.committed:
            problems.append(f"N1: step {verdict.committed} was committed, resumed from {resumed}")
        if resumed < verdict.step - self._save_steps - 1:
            problems.append(f"N6: from step {verdict.step} back to {resumed}")
        return problems

    def _check_folder(self) -> list[str]:
        problems = []
        for name in sorted(self._list_committed()):
            paths = [folder / "checkpoints" / name for folder in self.folders]
            try:
                verify_together(paths)
            except (BigftError, OSError) as error:
                if all(path.exists() for path in paths):  # It may have been rotated out meanwhile.
                    problems.append(f"N2: {error}")
        for folder in self.folders:
            problems += _find_bare(folder)
            debris = [path.name for path in folder.glob("checkpoints/.tmp-*")]
            if len(debris) > 2:  # One of a failed save, and the one that is being written.
                problems.append(f"N7: {debris}")
        return problems

    def _check_orphans(self) -> list[str]:
        """Everything on the hosts belongs to the start that runs: one agent for each of them."""
        agents = {
            number: self.hosts.processes(number, "-m bigft.launch.agent")
            for number in range(1, len(self.hosts.names) + 1)
        }
        several = {number: pids for number, pids in agents.items() if len(pids) > 1}
        ranks = {number: len(self.run.ranks(number)) for number in agents}
        wrong = {number: count for number, count in ranks.items() if count > 1}
        return [f"N7: agents {several}, ranks {wrong}"] if several or wrong else []


def _find_bare(folder: Path) -> list[str]:
    """Find what has a final name, and no manifest."""
    bare = [p for p in folder.glob("checkpoints/step_*") if not (p / "manifest.json").exists()]
    time.sleep(0.5 if bare else 0)  # It may be on its way out.
    return [f"N2: {path.name} has no manifest" for path in bare if path.exists()]


def verify_together(paths: Sequence[Path]) -> None:
    """Check that the parts of a checkpoint are whole, and all there between them.

    Raises:
        BigftError: Says what is not.
    """
    manifests = [read_own_manifest(path) for path in paths]
    names = {record.path for record in list_files(manifests[0])}
    found = set[str]()
    for path, manifest in zip(paths, manifests, strict=True):
        there = [name for name in names if (path / name).exists()]
        verify_files(path, manifest, there)
        found.update(there)
    digests = {manifest["digest"] for manifest in manifests}
    if found != names or len(digests) > 1:
        raise CheckpointError(f"{paths[0].name}: {names - found} are nowhere, digests {digests}")


# The faults.


def kill_rank(campaign: Campaign, host: int) -> None:
    _send(campaign.run.ranks(host)[:1], signal.SIGKILL)


def stop_rank(campaign: Campaign, host: int) -> None:
    _send(campaign.run.ranks(host)[:1], signal.SIGSTOP)


def kill_agent(campaign: Campaign, host: int) -> None:
    _send(campaign.hosts.processes(host, "bigft.launch.agent")[:1], signal.SIGKILL)


def kill_launcher(campaign: Campaign, host: int) -> None:
    _send(campaign.hosts.processes(host, "deepspeed.launcher.launch")[:1], signal.SIGKILL)


def kill_connection(campaign: Campaign, host: int) -> None:
    """The ssh client of a host, beside the launcher."""
    name = campaign.hosts.names[host - 1]
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if Path(os.fsdecode(words[0])).name == "ssh" and name.encode() in words:
                os.kill(int(folder.name), signal.SIGKILL)


def kill_host(campaign: Campaign, host: int) -> Callable[[], None]:
    campaign.hosts.kill(host)
    return lambda: campaign.hosts.boot(host)


def power_off(campaign: Campaign, host: int) -> Callable[[], None]:
    """Nobody is told: no packet leaves the host any more."""
    campaign.hosts.cut(host)
    campaign.hosts.kill(host)

    def power_on() -> None:
        campaign.hosts.mend(host)
        campaign.hosts.boot(host)

    return power_on


def cut_link(campaign: Campaign, host: int) -> Callable[[], None]:
    campaign.hosts.cut(host)
    return lambda: campaign.hosts.mend(host)


def freeze_host(campaign: Campaign, host: int) -> Callable[[], None]:
    """Everything on a host stands still, and goes on later as if nothing had been."""
    pids = campaign.hosts.processes(host)
    _send(pids, signal.SIGSTOP)
    return lambda: _send(pids, signal.SIGCONT)


def fill_disk(campaign: Campaign, host: int) -> Callable[[], None]:
    """The disk of the run folder, this host's or everybody's, and what the run gives back."""
    folder = campaign.folders[host - 1 if len(campaign.folders) > 1 else 0]
    ballast = folder.parent / "ballast"
    fill = f"while :; do cat /dev/zero >> {shlex.quote(str(ballast))}; sleep 0.02; done"
    filler = subprocess.Popen(["sh", "-c", fill], stderr=subprocess.DEVNULL, process_group=0)

    def end() -> None:
        os.killpg(filler.pid, signal.SIGKILL)
        filler.wait()
        ballast.unlink(missing_ok=True)

    return end


def slow_disk(campaign: Campaign, host: int) -> Callable[[], None]:
    """Every fsync of a rank takes 1.5 seconds longer."""
    (pid, *_) = campaign.run.ranks(host)
    inject = ["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:delay_enter=1500000"]
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-o", "/dev/null", *inject, "-p", str(pid)],
        stderr=subprocess.DEVNULL,
    )

    def end() -> None:
        assert tracer.poll() is None, f"strace has ended with {tracer.returncode}"
        tracer.terminate()
        tracer.wait()

    return end


FAULTS = (
    Fault("rank killed", kill_rank),
    Fault("rank stopped", stop_rank, limit=HANG_SECONDS),
    Fault("agent killed", kill_agent),
    Fault("launcher of a host killed", kill_launcher, code=75),
    Fault("connection killed", kill_connection),
    Fault("host killed", kill_host, lasts=8),
    Fault("host without power", power_off, lasts=20),
    Fault("link cut", cut_link, lasts=50),
    Fault("host frozen", freeze_host, lasts=70, limit=HANG_SECONDS, leaves=True),
    Fault("disk full", fill_disk, lasts=25, limit=60, code=5, is_survivable=True),
    Fault("disk slow", slow_disk, lasts=15, is_harmless=True),
)


def choose_faults(count: int, seed: int, hosts: int) -> list[tuple[Fault, int]]:
    """Every kind about as often, in an order and on hosts that the seed decides."""
    chooser = random.Random(seed)
    faults: list[Fault] = []
    while len(faults) < count:
        faults += chooser.sample(FAULTS, len(FAULTS))
    return [(fault, chooser.randint(1, hosts)) for fault in faults[:count]]


def _send(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

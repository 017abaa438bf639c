"""A Slurm cluster of two nodes on this machine, in a folder, for the time of a test.

Debian's slurmctld, slurmd and munged as they are, with keys, sockets, ports and state of their own.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
_PROGRAMS = ("slurmctld", "slurmd", "munged", "srun", "sbatch", "scontrol")


def can_run_slurm() -> bool:
    """Whether a cluster can be made: root, with slurm-wlm and munge."""
    return os.getuid() == 0 and all(shutil.which(name, path=_PATH) for name in _PROGRAMS)


class SlurmCluster:
    """Two nodes, both this machine, and two partitions: `urgent` preempts `main`."""

    nodes = ("127.0.0.1", "other")
    """The first is also an address: ranks meet there."""

    def __init__(self, folder: Path) -> None:
        """Take a short path: it is that of sockets, too."""
        self.folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environ = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{_PATH}",
        }

    def __enter__(self) -> "SlurmCluster":
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(self, *words: str, seconds: float = 60, **changes: str) -> str:
        """Run one of Slurm's programs and return what it prints; it has to succeed."""
        done = subprocess.run(
            [shutil.which(words[0], path=_PATH) or words[0], *words[1:]],
            env={**self.environ, **changes},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.said()
        return done.stdout

    def submit(self, *words: str, **changes: str) -> str:
        """Submit a script and return the number of its job."""
        return self.run("sbatch", "--parsable", *words, **changes).strip()

    def read_job(self, job: str) -> dict[str, str]:
        """Return what the controller knows of a job."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.partition("=")[::2] for word in words if "=" in word)

    def wait_for_job(self, job: str, state: str, restarts: int = 0, seconds: float = 90) -> None:
        """Wait until a job that was queued again at least so often is in a state."""
        end = time.monotonic() + seconds
        while True:
            facts = self.read_job(job)
            if facts["JobState"] == state and int(facts["Restarts"]) >= restarts:
                return
            assert time.monotonic() < end, f"{facts}\n{self.said()}"
            time.sleep(0.3)

    def said(self) -> str:
        """What the daemons and the jobs have said last."""
        files = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
        return "\n".join(f"--- {p.name}\n{p.read_text(errors='replace')[-2500:]}" for p in files)

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        munge = self.folder / "munge"
        munge.mkdir(mode=0o700)
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o600)
        controller, first, second = _find_ports(3)
        settings = [
            "ClusterName=bigft",
            "SlurmctldHost=localhost(127.0.0.1)",
            f"SlurmctldPort={controller}",
            "AuthType=auth/munge",
            "CryptoType=crypto/munge",
            f"AuthInfo=socket={munge}/socket",
            "SlurmUser=root",
            "SlurmdUser=root",
            f"StateSaveLocation={self.folder}/state",
            f"SlurmdSpoolDir={self.folder}/spool.%n",
            f"SlurmctldPidFile={self.folder}/slurmctld.pid",
            f"SlurmdPidFile={self.folder}/slurmd.%n.pid",
            # No control groups, and no accounting: neither is here.
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "MpiDefault=none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core",
            "SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2",
            "ReturnToService=2",
            # Nodes may have more cores than the machine.
            "SlurmdParameters=config_overrides",
            "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE",
            "KillWait=60",
            "SlurmctldDebug=info",
            # Both in one line: else two nodes must not be one host.
            f"NodeName={','.join(self.nodes)} NodeHostname={socket.gethostname()}"
            f" NodeAddr=127.0.0.1 Port={first},{second} CPUs=2 RealMemory=4000 State=UNKNOWN",
            "PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=60",
            "PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF",
        ]
        (self.folder / "state").mkdir()
        (self.folder / "slurm.conf").write_text("\n".join(settings) + "\n")
        files = [f"--{name}-file={munge}/{name}" for name in ("key", "pid", "log", "seed")]
        self._open("munged", ["--foreground", "--force", f"--socket={munge}/socket", *files])
        self._wait((munge / "socket").exists)
        self._open("slurmctld", ["-D"])
        for node in self.nodes:
            self._open("slurmd", ["-D", "-N", node], node)
        self._wait(self._is_ready)

    def _wait(self, happens: Callable[[], bool], seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not happens():
            assert all(daemon.poll() is None for daemon in self._daemons), self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        words = [shutil.which("sinfo", path=_PATH) or "sinfo", "-h", "-p", "main", "-o", "%T %D"]
        done = subprocess.run(words, env=self.environ, capture_output=True, text=True)
        return done.stdout.strip() == "idle 2"

    def _open(self, name: str, words: Sequence[str], tag: str = "") -> None:
        with (self.folder / f"{name}{tag}.log").open("wb") as log:
            self._daemons.append(
                subprocess.Popen(
                    [shutil.which(name, path=_PATH) or name, *words],
                    env=self.environ,
                    cwd=self.folder,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _stop(self) -> None:
        if len(self._daemons) > 1:
            scancel = shutil.which("scancel", path=_PATH) or "scancel"
            subprocess.run([scancel, "--user=root"], env=self.environ, capture_output=True)
        end = time.monotonic() + 10
        while self._find_processes("slurmstepd") and time.monotonic() < end:
            time.sleep(0.2)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self._daemons:
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        # What jobs have left, and the processes that watch over them.
        for pid in self._find_processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _find_processes(self, name: str = "") -> list[int]:
        """Every process with this cluster's settings, but for this one."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
                is_own = str(self.folder).encode() in words and name.encode() in words
                if is_own and int(process.name) != os.getpid():
                    found.append(int(process.name))
        return found


def _find_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = sorted(probe.getsockname()[1] for probe in probes)
    for probe in probes:
        probe.close()
    return ports

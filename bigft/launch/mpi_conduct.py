"""One start of a run by `mpirun`, which brings its own agents to the hosts."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from bigft.launch.conduct import Ending, HostEnd, is_stop
from bigft.launch.hostfile import Host
from bigft.launch.job import (
    LAUNCH_VARIABLE,
    RANK_PROGRAM,
    STOP_SECONDS,
    WORDS_VARIABLE,
    HostJob,
)
from bigft.launch.mpi import Mpi, mpi_command, mpi_environment
from bigft.launch.processes import die_with_parent

_LOOK_SECONDS = 2.0
_CODES = frozenset({0, 1, 2, 3, 4, 5, 6, 7, 75})
_STOPPED = 75
_DEVICES = "CUDA_VISIBLE_DEVICES"
_NEEDED = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH"}
    | {"SSH_AUTH_SOCK", "XDG_RUNTIME_DIR"}
)


class MpiConductor:
    """Runs one start. `stop` may be called by a signal handler."""

    def __init__(self, name: Mpi) -> None:
        """Take whose `mpirun` it is."""
        self._name = name
        self._stopped: str | None = None
        self._is_told = False
        self._deadline: float | None = None
        """When ranks that were asked to stop are ended."""

        self._process: subprocess.Popen[bytes] | None = None

    def stop(self, who: str) -> None:
        """Ask all ranks to commit and to leave; at the second call they are ended."""
        # It passes SIGUSR1 on, and waits; to SIGTERM it answers by killing.
        number = signal.SIGUSR1 if self._stopped is None else signal.SIGTERM
        self._stopped = self._stopped or who
        self._deadline = self._deadline or time.monotonic() + STOP_SECONDS
        if self._process is not None and self._process.poll() is None:
            self._is_told = True
            self._process.send_signal(number)

    def run(self, jobs: Sequence[HostJob], *, is_local: bool = False) -> Ending:
        """Start all ranks, and wait until mpirun has ended.

        Args:
            jobs: One per host; words are the same for all, variables that differ are left out.
            is_local: The only host is this one.

        Raises:
            LaunchError: mpirun is not there, or cannot start ranks on one of the hosts.
        """
        start = time.monotonic()
        first = jobs[0]
        hosts = [Host(name, len(devices)) for name, devices in first.world.items()]
        told = {
            **_find_common(jobs),
            "MASTER_ADDR": first.master_addr,
            "MASTER_PORT": str(first.master_port),
            LAUNCH_VARIABLE: first.launch_id,
            WORDS_VARIABLE: json.dumps(list(first.words)),
        }
        if is_local and _DEVICES in os.environ:
            # Of other hosts it says nothing.
            told[_DEVICES] = os.environ[_DEVICES]
        command = mpi_command(
            self._name,
            [Host("localhost", hosts[0].slots)] if is_local else hosts,
            [sys.executable, "-u", "-c", RANK_PROGRAM],
            sorted(told),
            as_root=os.geteuid() == 0,
            here=None if is_local else _find_own_address(first.host),
        )
        self._process = subprocess.Popen(
            command,
            env={**_keep(os.environ), **mpi_environment(self._name), **told},
            stdin=subprocess.DEVNULL,
            # A terminal's Ctrl-C is for this process, which passes it on.
            start_new_session=True,
            # Ranks that nobody looks after commit, and leave.
            preexec_fn=partial(die_with_parent, signal.SIGUSR1),  # noqa: PLW1509 - one thread
        )
        if self._stopped is not None and not self._is_told:
            # It came while there was nobody to tell it to.
            self._process.send_signal(signal.SIGUSR1)
        code = self._wait(self._process)
        return replace(
            judge_mpirun(code, self._stopped), seconds=round(time.monotonic() - start, 1)
        )

    def _wait(self, process: "subprocess.Popen[bytes]") -> int:
        """Wait for its end: as long as it takes, or as ranks that were asked to stop may take."""
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(_LOOK_SECONDS)
            if self._deadline is not None and time.monotonic() > self._deadline:
                # What outlives mpirun on other hosts is found by its mark.
                os.killpg(process.pid, signal.SIGKILL)


def _find_common(jobs: Sequence[HostJob]) -> dict[str, str]:
    """Return the variables that all hosts share: the name of a network interface may not be one."""
    return {
        name: text
        for name, text in jobs[0].environ.items()
        if all(job.environ.get(name) == text for job in jobs)
    }


def _keep(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what mpirun needs of this process's environment; MPICH passes all of it on."""
    return {name: text for name, text in environ.items() if name in _NEEDED}


def _find_own_address(host: str) -> str | None:
    """Return the address of this host towards another one; nothing is sent.

    MPICH would take this host's name, which the others may not know.
    """
    with contextlib.suppress(OSError):
        family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    return None


def judge_mpirun(code: int, stopped: str | None) -> Ending:
    """Make the exit code of the contract of that of mpirun.

    Args:
        code: Of the first rank that failed (Open MPI), or all or-ed bit by bit (MPICH); negative
            for a signal to mpirun.
        stopped: Who asked the run to stop; None: nobody.
    """
    # Open MPI says 128 + N of a rank that a signal has ended; MPICH forgets the code.
    if stopped is not None and (code == 0 or is_stop(code if code < 128 else 128 - code)):
        return Ending(_STOPPED, stopped=stopped)
    if code == 0:
        return Ending(0, stopped=stopped)
    known = code if code in _CODES else 6
    return Ending(known, HostEnd("mpirun", code), stopped=stopped)

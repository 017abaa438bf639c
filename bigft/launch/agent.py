"""What runs on every host of a run: `python -m bigft.launch.agent`.

It reads its job from standard input, so that nothing of it is on a command line, and starts
DeepSpeed's launcher for the ranks of this host. As long as the one who started it is there, a word
comes every few seconds; when they stop, or the input ends, the ranks are asked to stop, which they
do with a committed checkpoint. It leaves when nothing it has started is left.

The last line to standard error is the report of how the ranks ended.
"""

import contextlib
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Set
from dataclasses import dataclass

from bigft.distributed.exits import read_exit
from bigft.launch.job import (
    LAUNCH_VARIABLE,
    RANK_PROGRAM,
    STOP_SECONDS,
    WORDS_VARIABLE,
    HostJob,
    encode_world,
)
from bigft.launch.processes import (
    adopt_orphans,
    die_with_parent,
    end_all,
    find_below,
    find_children,
    find_marked,
    read_variable,
    reap,
    send,
)
from bigft.launch.report import Report, begin_word

BEAT_SECONDS = 5.0
"""Between two words of an agent, and of the launcher, that say nothing but that they are there."""

_JOB_SECONDS = 60.0
_JOB_BYTES = 8 << 20
_REPORT_SECONDS = 10.0
_STOPPED = 75


@dataclass(frozen=True)
class Limits:
    """How long an agent is patient, in seconds."""

    stop: float = STOP_SECONDS
    """With ranks that were asked to stop."""

    silent: float = 20.0
    """Without a word from the launcher: the network is cut, or its host has gone."""

    others: float = 20.0
    """With the other ranks of this host, once one has failed."""

    haste: float = 5.0
    """Between the polite end and the other one."""

    leftover: float = 15.0
    """With what outlives the ranks on purpose: a witness speaks for them, and leaves."""

    kill: float = 10.0
    """Until a killed process has to be gone."""


class Agent:
    """The ranks of this host, from their start to their end."""

    def __init__(self, job: HostJob, limits: Limits | None = None) -> None:
        """Start nothing yet."""
        self._job = job
        self._limits = limits or Limits()
        self._input = b""
        self._heard = self._beaten = time.monotonic()
        self._stopped = ""
        self._deadline: float | None = None
        self._is_killed = False
        self._poller = select.poll()
        self._ranks: dict[int, tuple[int, int]] = {}
        """Descriptor -> process and rank."""
        self._living: set[int] = set()
        """Descriptors of those that have not ended."""
        self._failed: tuple[int, int] | None = None
        """The first rank that failed, and how."""

    def run(self) -> Report:
        """Start the ranks, and stay until nothing of them is left."""
        adopt_orphans()
        launcher = self._start()
        done = os.pidfd_open(launcher.pid)
        for fd in (0, done):
            self._poller.register(fd, select.POLLIN | select.POLLHUP)
        parent = launcher.pid
        while parent == launcher.pid or self._living:
            # Until all ranks are known, often: one may end at once.
            ready = {fd for fd, _ in self._poller.poll(1000 if self._knows_all() else 100)}
            self._see_ends(ready & self._ranks.keys())
            if 0 in ready and not self._listen(parent):
                self._poller.unregister(0)
            if done in ready:
                self._poller.unregister(done)
                if launcher.wait() >= 0 or self._is_killed:
                    break
                # It was killed. Its ranks are below this process now, and commit as after any
                # other request.
                parent = os.getpid()
                self._stop(parent, "the end of its launcher")
            elif parent == launcher.pid:
                self._find_ranks(parent)
            self._look_at_clock(parent)
            self._beat()
        return self._make_report(launcher.wait())

    def _make_report(self, code: int) -> Report:
        """Say how it ended, with the exit code of the launcher; negative: it was killed itself."""
        job, failed = self._job, self._failed
        is_cause = code < 0 and not self._is_killed and (failed is None or failed[1] == _STOPPED)
        if is_cause:
            # Its ranks have left because of it, and say no more than that they were asked to.
            left = self._clear_up()
            return Report(job.host, code, None, self._stopped, left, of_launcher=True)
        code = _read_code(code)
        rank = job.find_only_rank() if code else None
        if failed is not None and not (_is_swept(failed[1]) and code > 0):
            rank, code = failed
        return Report(job.host, code, rank, self._stopped, self._clear_up())

    def _beat(self) -> None:
        """Let the launcher know that this agent is there."""
        now = time.monotonic()
        if now - self._beaten >= BEAT_SECONDS and say(f"{begin_word(self._job.token)}\n"):
            self._beaten = now

    def _start(self) -> "subprocess.Popen[bytes]":
        try:
            return subprocess.Popen(
                self._command(),
                env=self._environment(),
                cwd=self._job.folder,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                # If this process is killed nobody else ends the ranks: it passes SIGTERM on.
                preexec_fn=die_with_parent,  # noqa: PLW1509 - there is one thread
            )
        except OSError as error:
            raise SystemExit(f"bigft.launch.agent: no rank can be started: {error}") from error

    def _knows_all(self) -> bool:
        return len(self._ranks) == len(self._job.world[self._job.host])

    def _find_ranks(self, launcher: int) -> None:
        if self._knows_all() or self._failed:
            return
        known = {pid for pid, _ in self._ranks.values()}
        for pid in find_children(launcher):
            rank = read_variable(pid, "RANK") or ""
            if pid not in known and rank.isdecimal():
                with contextlib.suppress(OSError):
                    fd = os.pidfd_open(pid)
                    self._ranks[fd] = (pid, int(rank))
                    self._living.add(fd)
                    self._poller.register(fd, select.POLLIN)

    def _see_ends(self, fds: Set[int]) -> None:
        """Keep the first failure; of several at once one that speaks for itself."""
        ends: list[tuple[int, int]] = []
        for fd in fds:
            pid, rank = self._ranks[fd]
            self._poller.unregister(fd)
            self._living.discard(fd)
            code = read_exit(pid, fd)
            ends += [(rank, code)] if code else []
        if ends and self._failed is None:
            self._failed = min(ends, key=lambda end: (_is_swept(end[1]), end[1] < 0, end[0]))
            # The others have seen it, and leave. Whoever stands still does not.
            self._hurry(self._limits.others)

    def _hurry(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self._deadline = min(self._deadline or deadline, deadline)

    def _command(self) -> list[str]:
        job = self._job
        return [
            *(sys.executable, "-u", "-m", "deepspeed.launcher.launch", "--log_level", "critical"),
            f"--world_info={encode_world(job.world)}",
            f"--node_rank={job.node_rank}",
            f"--master_addr={job.master_addr}",
            f"--master_port={job.master_port}",
            *("--no_local_rank", "--no_python", sys.executable, "-u", "-c", RANK_PROGRAM),
        ]

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            **self._job.environ,
            "BIGFT_HOST": self._job.host,
            LAUNCH_VARIABLE: self._job.launch_id,
            WORDS_VARIABLE: json.dumps(list(self._job.words)),
        }

    # What the launcher says.

    def _listen(self, parent: int) -> bool:
        """Obey what has come; whether more can come."""
        data = b""
        # Where sshd is killed with something unread, reading is an error; it is the end, too.
        with contextlib.suppress(OSError):
            data = os.read(0, 4096)
        if not data:
            self._stop(parent, "the end of what started it")
            return False
        self._heard = time.monotonic()
        self._input += data
        *lines, self._input = self._input.split(b"\n")
        for line in lines:
            word, _, who = line.decode("utf-8", "replace").partition(" ")
            if word == "stop":
                self._stop(parent, who)
            elif word == "end":
                self._end(parent)
        return True

    def _look_at_clock(self, parent: int) -> None:
        now = time.monotonic()
        if now - self._heard > self._limits.silent:
            self._stop(parent, "the silence of what started it")
        if self._deadline is not None and now > self._deadline:
            self._end(parent)

    def _stop(self, parent: int, who: str) -> None:
        """Ask the ranks below a process to stop where nothing is lost."""
        if self._stopped:
            return
        self._stopped = who or "a request"
        self._hurry(self._limits.stop)
        # Not SIGTERM: DeepSpeed's launcher sends that to whoever is left when the first one has
        # left, and a second SIGTERM would mean haste. Without ranks it ends itself.
        send(find_children(parent) or _without_self(parent), signal.SIGUSR1)

    def _end(self, parent: int) -> None:
        """End the ranks: politely for a moment, then for good."""
        ranks = find_below(parent)
        if not self._is_killed:
            self._is_killed = True
            self._stopped = self._stopped or "the end of other hosts"
            self._deadline = time.monotonic() + self._limits.haste
            send(ranks, signal.SIGTERM)
            return
        send([*_without_self(parent), *ranks], signal.SIGKILL)

    def _clear_up(self) -> int:
        """Wait for what the ranks have left, and end what does not go; how many are left."""
        deadline = time.monotonic() + self._limits.leftover
        while self._find_left() and time.monotonic() < deadline:
            reap()
            time.sleep(0.1)
        end_all(self._find_left, self._limits.kill)
        return len(self._find_left())

    def _find_left(self) -> list[int]:
        """Also what has put itself into a session of its own: it is below this process."""
        return find_below(os.getpid())


def _without_self(pid: int) -> list[int]:
    return [pid] if pid != os.getpid() else []


def _is_swept(code: int) -> bool:
    """Whether it may be the broom of DeepSpeed's launcher, after another rank has failed."""
    return code == -signal.SIGTERM


def say(line: str, seconds: float = 0.0) -> bool:
    """Write to the launcher in one piece, or not at all.

    Whoever waits here while nobody reads, because the network is cut or the launcher stands still,
    would end no rank any more.

    Args:
        line: The words.
        seconds: How long to try it.

    Returns:
        Whether it is on its way.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            _write_now(line.encode())
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.1)
        except OSError:
            return False
        else:
            return True


def _write_now(data: bytes) -> None:
    # Not by O_NONBLOCK on the descriptor itself: the ranks share it, and would lose what they say.
    if stat.S_ISSOCK(os.fstat(2).st_mode):
        with socket.socket(fileno=os.dup(2)) as pipe:
            pipe.send(data, socket.MSG_DONTWAIT)
        return
    out = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
    try:
        os.write(out, data)
    finally:
        os.close(out)


def clear(launch_id: str) -> tuple[int, int]:
    """End what earlier starts of a launch have left on this host.

    Returns:
        How many processes there were, and how many of them could not be ended.
    """
    found = len(find_marked(LAUNCH_VARIABLE, launch_id))
    end_all(lambda: find_marked(LAUNCH_VARIABLE, launch_id), Limits.kill)
    return found, len(find_marked(LAUNCH_VARIABLE, launch_id))


def _read_code(code: int) -> int:
    """Read the exit code of DeepSpeed's launcher, which hands on -9 as 247."""
    is_signal = code > 256 - signal.NSIG
    return code - 256 if is_signal else code


def _read_job() -> HostJob:
    """Read the first line, byte by byte as it were: what follows is for the agent."""
    data = b""
    deadline = time.monotonic() + _JOB_SECONDS
    while not data.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([0], [], [], left)[0]:
            raise SystemExit("bigft.launch.agent: no job came by standard input")
        more = os.read(0, 1) if len(data) < _JOB_BYTES else b""
        if not more:
            raise SystemExit("bigft.launch.agent: no job came by standard input")
        data += more
    try:
        return HostJob.from_line(data.decode())
    except ValueError as error:
        raise SystemExit(f"bigft.launch.agent: no job of mine ({error})") from error


def main(limits: Limits | None = None) -> None:
    """Do the job, or with `--clear ID` end what another one has left."""
    if sys.argv[1:2] == ["--clear"]:
        found, left = clear(sys.argv[2])
        sys.stdout.write(f"{found}\n")
        raise SystemExit(1 if left else 0)
    # It ends with the ranks: whoever wants to stop the run tells those, or who started it.
    # No SIG_IGN, which the ranks would inherit.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, lambda *_: None)
    if not hasattr(os, "pidfd_open"):
        raise SystemExit(
            f"bigft.launch.agent: {sys.executable} was built for a Linux before 5.3 (it has no"
            " os.pidfd_open): use another build of Python"
        )
    job = _read_job()
    report = Agent(job, limits).run()
    say(report.to_line(job.token), _REPORT_SECONDS)
    raise SystemExit(min(report.code, 125) if report.code >= 0 else 1)


if __name__ == "__main__":
    main()

"""One start of a run on its hosts: an agent on each, what they say, and how it ended."""

import contextlib
import fcntl
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, TextIO

from bigft.distributed.signals import STOP_SIGNALS
from bigft.launch.agent import BEAT_SECONDS
from bigft.launch.job import STOP_SECONDS, HostJob
from bigft.launch.output import HostOutput
from bigft.launch.remote import render_ssh

_LOOK_SECONDS = 2.0
_SILENT_SECONDS = 55.0
"""Without a word from an agent; a cut network ends its connection sooner."""
_OTHERS_SECONDS = 25.0
"""After the first host has failed, for the others to see it by themselves and to say so."""
_END_SECONDS = 25.0
"""For agents that are told to end their ranks; then the connection is dropped."""

_REST_SECONDS = 5.0
"""After the end of a connection, for what is still on its way."""

_OF_THE_RUN = frozenset({1, 2, 3, 4, 5, 7, 75})
"""Codes by which a rank has said what is wrong; 6 and signals may be the trace of another's end."""


@dataclass(frozen=True)
class HostEnd:
    """How the part of one host ended."""

    host: str
    code: int
    """Of its first rank that failed, negative for a signal; 0: done."""

    rank: int | None = None
    is_lost: bool = False
    """Its agent did not report: the host or the connection has gone, or it could not start."""

    left: int = 0
    words: str = ""
    """Why it was given up, or the last line that came from it, where it is lost."""

    of_launcher: bool = False
    """Whether DeepSpeed's launcher was killed there: its ranks stop, and leave with 75."""

    def describe(self) -> str:
        """Say it in words."""
        if self.is_lost:
            return f"the connection to {self.host} has ended ({self.words or 'without a word'})"
        who = self.host if self.rank is None else f"rank {self.rank} on {self.host}"
        who = f"DeepSpeed's launcher on {self.host}" if self.of_launcher else who
        if self.code < 0:
            return f"{who} was ended by {_name_signal(-self.code)}"
        return f"{who} left with exit code {self.code}"


@dataclass(frozen=True)
class Ending:
    """How a start ended, by all hosts."""

    code: int
    """Of the contract in `errors.py`."""

    first: HostEnd | None = None
    """What failed first."""

    lost: tuple[str, ...] = ()
    """Hosts that did not report."""

    stopped: str | None = None
    """Who asked the launcher to stop; None: nobody."""

    seconds: float = 0.0
    left: Mapping[str, int] = field(default_factory=dict)
    """Host -> processes that could not be ended."""


class Conductor:
    """Runs one start. `stop` may be called by a signal handler."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        """Take where the first host's output goes; the others' goes to `err`, with their names."""
        self._out, self._err = out, err
        self._lock = threading.Lock()
        self._events: queue.SimpleQueue[HostEnd | None] = queue.SimpleQueue()
        self._stopped: str | None = None
        self._is_hasty = False
        self._parts: list[_Part] = []

    def stop(self, who: str) -> None:
        """Ask all ranks to commit and to leave; at the second call they are ended."""
        # Nothing is written here: a signal may come in the middle of a word to an agent.
        self._is_hasty = self._stopped is not None
        self._stopped = self._stopped or who
        self._events.put(None)

    def run(self, jobs: Sequence[HostJob], *, is_local: bool = False) -> Ending:
        """Start all agents, and wait until all have ended.

        Args:
            jobs: One per host; what the first one's ranks say is the voice of the run.
            is_local: The only host is this one: no ssh.
        """
        start = time.monotonic()
        self._parts = [
            _Part(job, self._outputs(place, job), self._events.put, is_local=is_local)
            for place, job in enumerate(jobs)
        ]
        ends = self._wait()
        for part in self._parts:
            part.close()
        seconds = round(time.monotonic() - start, 1)
        return replace(judge(ends, self._stopped), seconds=seconds)

    def _wait(self) -> list[HostEnd]:
        """Wait for all ends, in their order."""
        ends: list[HostEnd] = []
        clock = _Clock()
        while len(ends) < len(self._parts):
            with contextlib.suppress(queue.Empty):
                end = self._events.get(timeout=_LOOK_SECONDS)
                ends += [end] if end is not None else []
            now = time.monotonic()
            if clock.failed is None and any(end.code or end.is_lost for end in ends):
                clock.failed = now
            if clock.must_beat(now):
                self._tell_all("beat")
                for part in self._parts:
                    part.drop_if_silent(now)
            if self._stopped is not None and clock.stop is None:
                clock.stop = now
                self._tell_all(f"stop {self._stopped}")
            if clock.must_end(now, is_hasty=self._is_hasty):
                self._tell_all("end")
            if clock.must_drop(now):
                for part in self._parts:
                    part.drop()
        return ends

    def _tell_all(self, word: str) -> None:
        for part in self._parts:
            part.tell(word)

    def _outputs(self, place: int, job: HostJob) -> tuple[HostOutput, HostOutput]:
        """Where output and errors of a host go: the first one speaks for the run."""
        out, name = (self._out, "") if place == 0 else (self._err, f"[{job.host}] ")
        return (
            HostOutput(out, name, self._lock, job.token),
            HostOutput(self._err, name, self._lock, job.token),
        )


def judge(ends: Sequence[HostEnd], stopped: str | None) -> Ending:
    """Make one exit code of the ends of all hosts, in their order.

    Where a rank has said what is wrong its code counts, whoever was seen to end first: the others
    lose their peers because of it, and say that. A run that was asked to stop and lost nothing ends
    with 75.
    """
    failed = [end for end in ends if end.code or end.is_lost]
    lost = tuple(end.host for end in ends if end.is_lost)
    left = {end.host: end.left for end in ends if end.left}
    if not failed:
        return Ending(0, None, lost, stopped, left=left)
    said = [end for end in failed if end.code in _OF_THE_RUN and not end.is_lost]
    if stopped is None and lost:
        # Ranks are asked to stop where their agent has gone; that is a trace, too.
        said = [end for end in said if end.code != 75]
        failed = [end for end in failed if end.is_lost] if not said else failed
    first = said[0] if said else failed[0]
    code = first.code if said else 6
    if stopped is None and code == 75:
        # The ranks of all hosts stop together, and any may be seen first.
        first = next((end for end in failed if end.of_launcher), first)
    if stopped is not None and not lost and all(is_stop(end.code) for end in failed):
        code = 75
    return Ending(code, first, lost, stopped, left=left)


def is_stop(code: int) -> bool:
    """Whether a rank that was asked to stop has left so.

    One that had not begun yet ends by the signal itself; SIGKILL, or a crash, takes with it what
    was not committed.
    """
    return code == 75 or -code in (*STOP_SIGNALS, signal.SIGHUP)


class _Clock:
    """When patience ends."""

    def __init__(self) -> None:
        self.stop: float | None = None
        self.failed: float | None = None
        self._ended: float | None = None
        self._beaten = 0.0

    def must_beat(self, now: float) -> bool:
        is_due = now - self._beaten >= BEAT_SECONDS
        if is_due:
            self._beaten = now
        return is_due

    def must_end(self, now: float, *, is_hasty: bool) -> bool:
        """Whether agents are to end their ranks: said twice, the second time for good."""
        is_due = (
            is_hasty
            or (self.failed is not None and now - self.failed > _OTHERS_SECONDS)
            or (self.stop is not None and now - self.stop > STOP_SECONDS + _END_SECONDS)
        )
        if is_due and self._ended is None:
            self._ended = now
            return True
        return self._ended is not None and now - self._ended > _END_SECONDS / 2

    def must_drop(self, now: float) -> bool:
        return self._ended is not None and now - self._ended > _END_SECONDS


class _Part:
    """The agent of one host, and the connection to it."""

    def __init__(
        self,
        job: HostJob,
        outputs: tuple[HostOutput, HostOutput],
        tell_end: Callable[[HostEnd], None],
        *,
        is_local: bool,
    ) -> None:
        self._job = job
        self._tell_end = tell_end
        self._outputs = outputs
        self._dropped = ""
        self._is_dropped = False
        words = [sys.executable, "-m", "bigft.launch.agent"]
        path = {n: t for n, t in job.environ.items() if n == "PYTHONPATH"}
        command = words if is_local else render_ssh(job.host, words, path, Path(job.folder))
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=job.folder if is_local else None,
            env={**os.environ, **path} if is_local else None,
            # A terminal's Ctrl-C is for this process, which passes it on.
            start_new_session=True,
        )
        self._begin()

    def _begin(self) -> None:
        out, err = self._process.stdout, self._process.stderr
        assert out is not None
        assert err is not None
        readers = [
            threading.Thread(target=_read, args=(pipe, output), daemon=True)
            for pipe, output in zip((out, err), self._outputs, strict=True)
        ]
        for reader in readers:
            reader.start()
        line = self._job.to_line().rstrip("\n")
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                # All of it fits: an ssh that does not read, behind a cut network, keeps nobody.
                fcntl.fcntl(self._process.stdin, fcntl.F_SETPIPE_SZ, len(line.encode()) + 4096)
        self.tell(line)
        if self._process.stdin is not None:
            # From here on nothing may keep the conductor: a cut connection takes no words.
            os.set_blocking(self._process.stdin.fileno(), False)
        threading.Thread(target=self._wait, args=(readers,), daemon=True).start()

    def tell(self, word: str) -> None:
        """Say something to the agent, if it still listens."""
        pipe = self._process.stdin
        if pipe is not None and not pipe.closed:
            with contextlib.suppress(OSError, ValueError):
                pipe.write(f"{word}\n".encode())
                pipe.flush()

    def drop(self) -> None:
        """Give the connection up; the agent notices, and ends what is left there."""
        self._is_dropped = True
        with contextlib.suppress(OSError):
            self._process.kill()

    def drop_if_silent(self, now: float) -> None:
        """Give up an agent that stands still, as one that is stopped by a signal does."""
        silent = self._outputs[1].silent_seconds(now)
        if silent > _SILENT_SECONDS and self._process.poll() is None:
            self._dropped = f"no word from its agent for {_SILENT_SECONDS:.0f} s"
            self.drop()

    def close(self) -> None:
        """Close what is left of it."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                self._process.stdin.close()

    def _wait(self, readers: Sequence[threading.Thread]) -> None:
        code = self._process.wait()
        for reader, output in zip(readers, self._outputs, strict=True):
            # Whoever holds the pipe open beyond the end of ssh is not waited for; but the report
            # may be behind what nobody has read yet.
            reader.join(_REST_SECONDS)
            while reader.is_alive() and output.is_held_up and not self._is_dropped:
                reader.join(_REST_SECONDS)
        out, err = self._outputs
        host, report = self._job.host, err.report
        if report is not None:
            rank, left, of_launcher = report.rank, report.left, report.of_launcher
            self._tell_end(HostEnd(host, report.code, rank, left=left, of_launcher=of_launcher))
        else:
            last = err.last_words or out.last_words
            words = self._dropped or (f"last heard: {last}" if last else "")
            self._tell_end(HostEnd(host, code, is_lost=True, words=words))


def _read(pipe: BinaryIO, output: HostOutput) -> None:
    while data := os.read(pipe.fileno(), 1 << 16):
        output.write(data)
    output.finish()


def _name_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

"""When one rank of this host dies, the others leave within seconds and one of them says why.

Without this they wait in a collective for a process that no longer exists: for minutes under
gloo, for the whole time limit under NCCL. Ranks of other hosts are not watched.
"""

import contextlib
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch

from bigft.distributed.collectives import gather_objects
from bigft.distributed.exits import read_exit
from bigft.distributed.last_words import describe_end, say
from bigft.distributed.memory import read_host_memory
from bigft.distributed.peers import Peers, describe_self
from bigft.distributed.place import HERE
from bigft.distributed.signals import REPEAT_SECONDS, STOP_SIGNALS, StopSignals
from bigft.distributed.world import World
from bigft.errors import LaunchError, StoppedError

logger = logging.getLogger(__name__)

_POLITE_SECONDS = 10.0
"""After a rank has left with an error that it has said itself, the others have this long."""

_STUBBORN_SECONDS = 5.0
"""How long the main thread may stay in native code, which does not look at signals, after one."""

_IMPATIENT_SECONDS = 2.0
"""The same after the second of two equal signals."""

_OF_ONE_RANK = ("phase", "step", "rss_bytes")
_SPEAKER_SECONDS = 3.0
_SAMPLE_SECONDS = 1.0


@dataclass(frozen=True)
class _Process:
    """A rank of this host, or what started the ranks."""

    pid: int
    pidfd: int
    rank: int | None
    """None: a launcher."""


@dataclass(frozen=True)
class _Deadline:
    """When this process is ended, unless it has left by then."""

    time: float
    code: int
    text: str | None = None
    unless_awaited: bool = False
    """Drop it when the training loop is there to look at the request."""


class Watch:
    """A thread that looks after the other ranks of this host, and after a stuck main thread."""

    def __init__(self, signals: StopSignals) -> None:
        """Watch nobody yet."""
        self._signals = signals
        self._rank = int(os.environ.get("RANK", "0"))
        self._stream: TextIO | None = None
        self._has_parted = False
        self._clean_ups: list[Callable[[], None]] = []
        self._watched: dict[int, _Process] = {}
        self._peers: Peers | None = None
        self._kills_before = read_host_memory().kills
        self._sample()
        self._heard: dict[int, float] = {}
        self._deadline: _Deadline | None = None
        self._main_failed = False
        self._is_leaving = threading.Event()
        self._wakeups, self._waker = os.pipe()
        for fd in (self._wakeups, self._waker):
            os.set_blocking(fd, False)
        self._thread = threading.Thread(target=self._run, name="bigft-watch", daemon=True)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Watch inside the block; afterwards ranks may end as they like."""
        on_main = threading.current_thread() is threading.main_thread()
        # The system writes the number of a signal there at once, whatever the main thread does.
        previous = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False) if on_main else -1
        self._thread.start()
        try:
            yield
        finally:
            if on_main:
                signal.set_wakeup_fd(previous)
            os.write(self._waker, b"\0")
            self._thread.join(_STUBBORN_SECONDS)
            for fd in (*self._watched, self._wakeups, self._waker):
                os.close(fd)

    def meet(self, world: World) -> None:
        """Learn which ranks are on this host. Collective: every rank."""
        mine = describe_self(world.rank, _identify_host())
        everybody = gather_objects(mine)
        self._peers = Peers(mine, everybody)
        found = [
            (peer.pid, peer.rank)
            for peer in everybody
            if peer.kernel == mine.kernel and peer.rank != world.rank
        ]
        self._watch([*found, *((pid, None) for pid in _find_launchers())])

    def part(self) -> None:
        """Let ranks end as they like from now on."""
        self._has_parted = True

    def speak_through(self, stream: TextIO | None) -> None:
        """Choose where this rank's last words go; None: standard error."""
        self._stream = stream

    def before_leaving(self, clean_up: Callable[[], None]) -> None:
        """Have something done when this thread ends the process, past all `finally` blocks."""
        self._clean_ups.append(clean_up)

    def explain(self, error: Exception) -> None:
        """Wait for the news when an error looks like the trace of another rank's end.

        If a rank of this host has died, or has left with an error of its own, this process leaves
        now and the call does not return: its own error is only a consequence.
        """
        if not (self._watched and is_about_others(error)):
            return
        logger.warning("collective failed, as it does when another rank ends: %s", error)
        if self._peers is not None:
            self._peers.announce()
            self._peers.dump_stacks()
        self._main_failed = True
        if self._is_leaving.wait(_POLITE_SECONDS):
            self._thread.join()

    def name_others(self, error: Exception) -> str:
        """Say which ranks and hosts an error is about; empty where nobody here knows."""
        if self._peers is None or not is_about_others(error):
            return ""
        return self._peers.explain(str(error))

    # The thread.

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._wakeups, select.POLLIN)
        registered: set[int] = set()
        while True:
            for fd in self._watched.keys() - registered:
                poller.register(fd, select.POLLIN)
                registered.add(fd)
            ready = [fd for fd, _ in poller.poll(500)]
            if self._wakeups in ready:
                numbers = os.read(self._wakeups, 256)
                if 0 in numbers:
                    return
                for number in numbers:
                    self._hear(number)
            for fd in ready:
                if fd != self._wakeups:
                    poller.unregister(fd)
                    self._see_end(self._watched[fd])
            self._look_at_clock()

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if now - self._sampled >= _SAMPLE_SECONDS:
            self._sample()
        signals = self._signals
        if signals.name and self._deadline is None and not (signals.is_awaited or signals.is_over):
            # Also a request that came before this thread, or was lost in a library.
            self._expect_stop(now)
        due = self._deadline
        if due is not None and (now >= due.time or self._main_failed):
            self._deadline = None
            if not (due.unless_awaited and signals.is_awaited):
                self._leave(due.code, due.text)

    def _sample(self) -> None:
        """Keep what is asked when a process has ended, and nobody can measure it any more."""
        self._sampled = time.monotonic()
        memory = read_host_memory()
        HERE.note(
            used_bytes=memory.used_bytes,
            limit_bytes=memory.limit_bytes,
            is_grouped=memory.is_grouped,
            rss_bytes=_read_rss_bytes(),
            shared_free_bytes=_read_free_bytes("/dev/shm"),
        )

    def _hear(self, number: int) -> None:
        """Take note of a signal also when the main thread is not able to."""
        if number not in STOP_SIGNALS:
            return
        now = time.monotonic()
        self._signals.request(signal.Signals(number).name)
        if now - self._heard.setdefault(number, now) >= REPEAT_SECONDS:
            self._deadline = _Deadline(now + _IMPATIENT_SECONDS, 128 + number)

    def _expect_stop(self, now: float) -> None:
        error = self._signals.make_error()
        text = str(error) if self._rank == 0 else None
        self._deadline = _Deadline(
            now + _STUBBORN_SECONDS, StoppedError.exit_code, text, unless_awaited=True
        )

    def _see_end(self, process: _Process) -> None:
        if process.rank is None:
            self._stop_main("the end of its launcher")
            return
        if self._has_parted:
            return
        code = read_exit(process.pid, process.pidfd)
        logger.info("rank %s (pid %s) ended: %s", process.rank, process.pid, code)
        now = time.monotonic()
        if code is None:
            text = (
                f"rank {process.rank} (pid {process.pid}) ended, and nobody knows how; see its log"
            )
            self._deadline = _Deadline(now + _POLITE_SECONDS, LaunchError.exit_code, text)
        elif -code in (*STOP_SIGNALS, signal.SIGHUP):
            # Before its first lines or after its last ones: a launcher ends whoever is left.
            text = self._describe(process, code)
            self._deadline = _Deadline(now + _POLITE_SECONDS, LaunchError.exit_code, text)
        elif code < 0:
            self._mourn(self._describe(process, code))
        elif code > 0:
            # It has said why. Where its error was everybody's, this process is leaving, too.
            self._deadline = _Deadline(now + _POLITE_SECONDS, code)
            if code == StoppedError.exit_code:
                self._stop_main(f"a signal to rank {process.rank}")

    def _stop_main(self, name: str) -> None:
        """Do as if this process had got a signal."""
        self._signals.request(name)
        if not self._signals.is_awaited and callable(signal.getsignal(signal.SIGUSR1)):
            # A real one, which also wakes a sleeper. Not SIGTERM: the launcher sends that one
            # next, and a second one would mean haste.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def _describe(self, process: _Process, code: int) -> str:
        # What this rank has noted stands for one whose notes cannot be read.
        rank = process.rank or 0
        facts = (self._peers.read(rank) if self._peers is not None else None) or {
            name: value for name, value in HERE.facts.items() if name not in _OF_ONE_RANK
        }
        facts["started_kills"] = HERE.facts.get("started_kills", self._kills_before)
        text = describe_end(rank, process.pid, code, facts)
        return (
            f"{text}. The other ranks of this host have stopped; the same command goes on from the"
            " newest committed checkpoint"
        )

    def _mourn(self, text: str) -> None:
        speaker = self._find_speaker()
        # The speaker may be on its way out, too: then somebody else has to say it.
        is_said = speaker is not None and self._has_spoken(speaker)
        self._leave(LaunchError.exit_code, None if is_said else text)

    def _find_speaker(self) -> _Process | None:
        """Find the living rank below this one that speaks; None when it is this one."""
        below = [p for p in self._watched.values() if p.rank is not None and p.rank < self._rank]
        alive = [p for p in below if not _has_ended(p, 0)]
        return min(alive, key=lambda p: p.rank or 0, default=None)

    def _has_spoken(self, speaker: _Process) -> bool:
        """Whether the speaker lives, or has left in order."""
        if not _has_ended(speaker, _SPEAKER_SECONDS):
            return True
        code = read_exit(speaker.pid, speaker.pidfd)
        return code is None or code >= 0

    def _leave(self, code: int, text: str | None) -> None:
        self._is_leaving.set()
        if text:
            logger.error("%s", text)
            say(text, HERE.facts.get("folder"), self._stream)
        else:
            logger.info("leaving with code %s after another rank", code)
        for clean_up in self._clean_ups:
            with contextlib.suppress(Exception):
                clean_up()
        os._exit(code)

    def _watch(self, processes: list[tuple[int, int | None]]) -> None:
        for pid, rank in processes:
            try:
                pidfd = os.pidfd_open(pid)
            except OSError as error:
                logger.warning("pid %s cannot be watched: %s", pid, error)
                continue
            self._watched = {**self._watched, pidfd: _Process(pid, pidfd, rank)}
        # A number that is no signal of ours: the thread looks at the list again.
        os.write(self._waker, b"\xff")


def _identify_host() -> str:
    """Name this kernel and this view of process numbers; containers of one host differ."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115


def _find_launchers() -> list[int]:
    """Find the DeepSpeed launcher that started this rank, and the `deepspeed` command above it.

    A killed `deepspeed` leaves the ranks running, with nobody to report to.
    """
    found = []
    pid = os.getppid()
    for word in ("deepspeed.launcher.launch", "deepspeed"):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, UnicodeDecodeError):
            break
        if word not in line:
            break
        found.append(pid)
        pid = parent
    return found


def _has_ended(process: _Process, seconds: float) -> bool:
    poller = select.poll()
    poller.register(process.pidfd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def is_about_others(error: Exception) -> bool:
    """Whether an error is how a collective tells that another rank has gone."""
    if isinstance(error, torch.distributed.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        word in text for word in ("gloo", "nccl", "connection", "peer")
    )


def _read_rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _read_free_bytes(folder: str) -> int | None:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize

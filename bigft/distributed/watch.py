"""When a rank dies or stands still, the others leave within seconds and one of them says why.

Without this they wait in a collective for a process that no longer exists: for minutes under
gloo, for the whole time limit under NCCL. Ranks of one host see each other's ends here; what
happens to other hosts is the business of `lookout/`.
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
from queue import SimpleQueue
from typing import TextIO

from bigft.distributed.collectives import gather_objects
from bigft.distributed.company import open_lookout
from bigft.distributed.exits import find_code, read_exit
from bigft.distributed.failures import is_about_others
from bigft.distributed.last_words import GO_ON, describe_end, say, show
from bigft.distributed.lookout.limits import STACKS_SECONDS, Limits
from bigft.distributed.lookout.neighbour import Neighbour
from bigft.distributed.lookout.parties import Lookout
from bigft.distributed.memory import read_host_memory
from bigft.distributed.peers import Peers, describe_self
from bigft.distributed.place import HERE
from bigft.distributed.processes import (
    Process,
    find_launchers,
    find_speaker,
    has_spoken,
    identify_host,
)
from bigft.distributed.sample import SAMPLE_SECONDS, Sampler
from bigft.distributed.signals import REPEAT_SECONDS, STOP_SIGNALS, StopSignals
from bigft.distributed.world import World
from bigft.errors import BigftError, LaunchError, StoppedError

logger = logging.getLogger(__name__)

_POLITE_SECONDS = 10.0
"""After a rank has left with an error that it has said itself, the others have this long."""

_STUBBORN_SECONDS = 5.0
"""How long the main thread may stay in native code, which does not look at signals, after one."""

_IMPATIENT_SECONDS = 2.0
"""The same after the second of two equal signals."""

_OF_ONE_RANK = ("phase", "step", "rss_bytes", "where", "waits")


@dataclass(frozen=True)
class _Deadline:
    """When this process is ended, unless it has left by then."""

    time: float
    code: int
    text: str | None = None
    unless_awaited: bool = False
    """Drop it when the training loop is there to look at the request."""


@dataclass(frozen=True)
class _News:
    """What the lookout has heard or found out."""

    code: int
    text: str
    at_once: bool
    rank: int | None


class Watch:
    """A thread that looks after the other ranks of this host, and after a stuck main thread."""

    def __init__(self, signals: StopSignals, limits: Limits | None = None) -> None:
        """Watch nobody yet."""
        self._signals = signals
        self._limits = limits or Limits()
        self._rank = int(os.environ.get("RANK", "0"))
        self._stream: TextIO | None = None
        self._has_parted = False
        self._clean_ups: list[Callable[[], None]] = []
        self._watched: dict[int, Process] = {}
        self._peers: Peers | None = None
        self._kills_before = read_host_memory().kills
        self._sampler = Sampler(min(10.0, self._limits.steady / 4 or 10.0))
        self._lookout: Lookout | None = None
        self._neighbour: Neighbour | None = None
        self._news: SimpleQueue[_News] = SimpleQueue()
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
        except BaseException as error:
            if self._lookout is not None:
                # The ranks of this host see the end itself.
                self._lookout.dismiss(self._rank, find_code(error), at_once=False)
            raise
        finally:
            self.part()
            if on_main:
                signal.set_wakeup_fd(previous)
            os.write(self._waker, b"\0")
            self._thread.join(_STUBBORN_SECONDS)
            for fd in (*self._watched, self._wakeups, self._waker):
                os.close(fd)

    def meet(self, world: World) -> None:
        """Learn which ranks are where, and begin to watch. Collective: every rank."""
        mine = describe_self(world.rank, identify_host())
        everybody = gather_objects(mine)
        self._peers = Peers(mine, everybody)
        found = [
            (peer.pid, peer.rank)
            for peer in everybody
            if peer.kernel == mine.kernel and peer.rank != world.rank
        ]
        self._watch([*found, *((pid, None) for pid in find_launchers())])
        self._lookout, self._neighbour = open_lookout(world, self._peers, self._limits, self)
        self._lookout.start()

    def part(self) -> None:
        """Let ranks end as they like from now on."""
        self._has_parted = True
        lookout, self._lookout = self._lookout, None
        if lookout is not None:
            lookout.part()

    def tell(self, error: BigftError) -> bool:
        """Let rank 0 say an error of this rank; return whether it has heard it."""
        text = f"rank {self._rank}: {error}"
        lookout = self._lookout
        if lookout is None:
            return False
        return lookout.tell(self._rank, error.exit_code, text, at_once=False)

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
        has_others = self._watched or (self._peers is not None and self._peers.has_others)
        if not (has_others and is_about_others(error)):
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

    # What the lookout says, from its own thread.

    def ended(self, code: int, text: str, *, at_once: bool, rank: int | None = None) -> None:
        """Leave soon, with a code of another rank or of all."""
        self._news.put(_News(code, text, at_once, rank))
        self._wake()

    def warned(self, text: str) -> None:
        """Say something that people should know, and go on."""
        logger.warning("%s", text)
        show(text, self._stream)

    def dump(self, line: str) -> None:
        """Have the ranks of this host write their stacks."""
        logger.warning("%s", line)
        if self._peers is not None:
            self._peers.dump_stacks(line)

    # The thread.

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._wakeups, select.POLLIN)
        registered: set[int] = set()
        is_over = is_said = False
        while not is_over:
            try:
                is_over = self._look_around(poller, registered)
            except Exception:
                # Whoever makes no sound any more is taken for stuck: a bug must not end the watch.
                if not is_said:
                    logger.exception("the watch of this rank has met a bug, and goes on")
                is_said = True
                time.sleep(0.5)

    def _look_around(self, poller: select.poll, registered: set[int]) -> bool:
        """See what has happened in half a second; whether the watch is over."""
        for fd in self._watched.keys() - registered:
            poller.register(fd, select.POLLIN)
            registered.add(fd)
        ready = [fd for fd, _ in poller.poll(500)]
        if self._wakeups in ready:
            numbers = os.read(self._wakeups, 256)
            if 0 in numbers:
                return True
            for number in numbers:
                self._hear(number)
        for fd in ready:
            if fd != self._wakeups:
                poller.unregister(fd)
                self._see_end(self._watched[fd])
        self._look_at_clock()
        return False

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if now - self._sampler.taken >= SAMPLE_SECONDS:
            self._sampler.take()
            self._look_at_neighbour(now)
        while not self._news.empty():
            self._hear_news(self._news.get())
        signals = self._signals
        if signals.name and self._deadline is None and not (signals.is_awaited or signals.is_over):
            # Also a request that came before this thread, or was lost in a library.
            self._expect_stop(now)
        due = self._deadline
        if due is not None and (now >= due.time or self._main_failed):
            self._deadline = None
            if not (due.unless_awaited and signals.is_awaited):
                self._leave(due.code, due.text)

    def _hear_news(self, news: _News) -> None:
        if self._has_parted:
            return
        logger.info("news of the run: %s", news)
        text = news.text or None
        if news.at_once:
            self._leave(news.code, text)
        lookout = self._lookout
        if lookout is not None and self._rank == 0:
            lookout.dismiss(news.rank or 0, news.code, at_once=False)
        if self._deadline is None or (text and not self._deadline.text):
            self._deadline = _Deadline(time.monotonic() + _POLITE_SECONDS, news.code, text)
        if news.code == StoppedError.exit_code:
            self._stop_main(f"a signal to rank {news.rank}")

    def _look_at_neighbour(self, now: float) -> None:
        """See whether the rank that speaks for this host still can."""
        if self._neighbour is None or self._has_parted:
            return
        text = self._neighbour.judge(now)
        if text is not None:
            if self._neighbour.speaks:
                self.dump(f"the run stands still; Python stacks follow: {text}")
            time.sleep(STACKS_SECONDS)
            self._leave_with_words(f"{text}. {GO_ON}" if self._neighbour.speaks else None)

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

    def _see_end(self, process: Process) -> None:
        if process.rank is None:
            self._stop_main("the end of its launcher")
            return
        if self._has_parted:
            return
        code = read_exit(process.pid, process.pidfd)
        logger.info("rank %s (pid %s) ended: %s", process.rank, process.pid, code)
        decided = self._peers.read(process.rank).get("leaving") if self._peers else None
        if code is not None and code == decided:
            # It has left because of others, for all of this host.
            self._leave(code, None)
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
            lookout = self._lookout
            if lookout is not None:
                lookout.dismiss(process.rank, code, at_once=False)
            if code == StoppedError.exit_code:
                self._stop_main(f"a signal to rank {process.rank}")

    def _stop_main(self, name: str) -> None:
        """Do as if this process had got a signal."""
        self._signals.request(name)
        if not self._signals.is_awaited and callable(signal.getsignal(signal.SIGUSR1)):
            # A real one, which also wakes a sleeper. Not SIGTERM: the launcher sends that one
            # next, and a second one would mean haste.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def _describe(self, process: Process, code: int) -> str:
        # What this rank has noted stands for one whose notes cannot be read.
        rank = process.rank or 0
        facts = (self._peers.read(rank) if self._peers is not None else None) or {
            name: value for name, value in HERE.facts.items() if name not in _OF_ONE_RANK
        }
        facts["started_kills"] = HERE.facts.get("started_kills", self._kills_before)
        text = describe_end(rank, process.pid, code, facts)
        return f"{text}. The other ranks have stopped. {GO_ON}"

    def _mourn(self, text: str) -> None:
        speaker = find_speaker(self._watched.values(), self._rank)
        # The speaker may be on its way out, too: then somebody else has to say it.
        is_said = speaker is not None and has_spoken(speaker)
        self._leave_with_words(None if is_said else text)

    def _leave_with_words(self, text: str | None) -> None:
        """Leave because of another rank; rank 0 says why, if it can hear it."""
        code = LaunchError.exit_code
        lookout = self._lookout
        if text and lookout and lookout.tell(self._rank, code, text, at_once=True):
            logger.error("rank 0 has been told: %s", text)
            text = None
        self._leave(code, text)

    def _leave(self, code: int, text: str | None) -> None:
        self._is_leaving.set()
        HERE.note(leaving=code)
        lookout = self._lookout
        if lookout is not None:
            lookout.dismiss(self._rank, code, at_once=code == LaunchError.exit_code)
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
            except (OSError, AttributeError) as error:  # some builds of Python have none
                logger.warning("pid %s cannot be watched: %s", pid, error)
                continue
            self._watched = {**self._watched, pidfd: Process(pid, pidfd, rank)}
        self._wake()

    def _wake(self) -> None:
        """Let the thread look at everything again: a number that is no signal of ours."""
        with contextlib.suppress(OSError):
            os.write(self._waker, b"\xff")

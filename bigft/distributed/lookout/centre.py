"""Rank 0's part: hear every host once a second, and tell all of them when it is over."""

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bigft.distributed.last_words import GO_ON
from bigft.distributed.lookout.judge import Judge
from bigft.distributed.lookout.limits import STACKS_SECONDS, TICK_SECONDS, Limits
from bigft.distributed.lookout.lines import Line, LineClosedError, Message
from bigft.distributed.lookout.parties import Ears, Host
from bigft.distributed.lookout.silence import Silence, judge_silence
from bigft.distributed.lookout.standing import Standing
from bigft.distributed.lookout.strangers import Strangers
from bigft.errors import LaunchError
from bigft.units import format_seconds

logger = logging.getLogger(__name__)

_GRACE_SECONDS = 5.0
"""After a connection has closed: to come back, or for another rank of that host to say why."""

_ARRIVAL_SECONDS = 30.0
_SLEPT_SECONDS = 5.0
"""A longer pause between two rounds means that this process itself was stopped."""


@dataclass
class _Post:
    """What is known of another host's connection."""

    host: Host
    line: Line | None = None
    closed: float | None = None
    is_warned: bool = False
    has_left: bool = False


class Centre:
    """A thread of rank 0. It judges its own host also when there is no other."""

    def __init__(
        self,
        limits: Limits,
        own: Host,
        others: Sequence[Host],
        look: Callable[[], list[Standing]],
        ears: Ears,
        *,
        listener: socket.socket | None = None,
        token: str = "",
    ) -> None:
        """Take who there is.

        Args:
            limits: How long everybody may be silent or stand still.
            own: This host.
            others: The other hosts.
            look: Surveys this host's ranks.
            ears: Who acts.
            listener: Where the others call; None: they are not watched.
            token: What they have to show.
        """
        now = time.monotonic()
        self._limits, self._look, self._ears = limits, look, ears
        self._listener = listener
        self._own = own
        self._posts = {host.leader: _Post(host) for host in others if listener is not None}
        hosts = {rank: host.name for host in (own, *others) for rank in host.ranks}
        self._judge = Judge(limits, hosts, now)
        self._selector = selectors.DefaultSelector()
        self._strangers = Strangers(self._selector, token, len(others))
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._began = self._ticked = now
        self._is_missing_said = False
        self._is_dismissed = False
        self._thread = threading.Thread(target=self._run, name="bigft-lookout", daemon=True)

    def start(self) -> None:
        """Begin to listen and to judge."""
        if self._listener is not None:
            self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread.start()

    def part(self) -> None:
        """Let everybody end as they like from now on."""
        self._tell_all({"bye": 0})
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(TICK_SECONDS + 1)
        for post in self._posts.values():
            self._drop(post)
        self._strangers.close()
        if self._listener is not None:
            self._listener.close()
        self._selector.close()

    def dismiss(self, rank: int, code: int, *, at_once: bool) -> None:
        """Tell all hosts that a rank has ended with a code, and so the run does."""
        # Hosts that leave now are not lost; words about why may still come.
        self._is_dismissed = True
        self._tell_all({"leave": code, "rank": rank, "at_once": at_once})

    def tell(self, rank: int, code: int, text: str, *, at_once: bool) -> bool:
        """Say that nobody else has to: this is where words are said."""
        return False

    # The thread.

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                self._listen_for(max(0.0, self._ticked + TICK_SECONDS - time.monotonic()))
                if time.monotonic() - self._ticked >= TICK_SECONDS:
                    self._tick()
        except Exception:
            # Whatever goes wrong here must not end a run that is well.
            logger.exception("the lookout has ended; other hosts are not watched any more")

    def _listen_for(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            with self._lock:
                if self._over.is_set():
                    return
                if key.fileobj is self._listener:
                    self._strangers.accept(self._listener)
                elif key.data is None:
                    self._greet(key.fd)
                else:
                    self._hear(key.data)

    def _greet(self, fd: int) -> None:
        """Hear the first words of somebody: which host it is, or only how one of its ranks ends."""
        found = self._strangers.hear(fd)
        if found is None:
            return
        line, (hello, *rest) = found
        post = self._posts.get(_number(hello.get("leader")))
        if post is None:
            logger.warning("a connection of a host that nobody knows was closed")
            self._close(line)
        elif "end" in hello:
            self._answer(line, {"heard": 1})
            self._close(line)
            self._hear_end(hello, post)
        else:
            self._drop(post)
            post.line, post.closed, post.is_warned = line, None, False
            self._selector.modify(line, selectors.EVENT_READ, post)
            self._answer(line, self._make_beat())
            for message in rest:
                self._obey(post, message)

    def _hear(self, post: _Post) -> None:
        if post.line is None:
            return
        try:
            for message in post.line.receive():
                self._obey(post, message)
        except LineClosedError as error:
            logger.info("%s: connection lost: %s", post.host, error)
            self._drop(post)
            post.closed = time.monotonic()

    def _obey(self, post: _Post, message: Message) -> None:
        if "bye" in message:
            post.has_left = True
            self._judge.forget(post.host.ranks)
        elif "end" in message:
            self._hear_end(message, post)
        elif isinstance(rows := message.get("ranks"), list):
            with contextlib.suppress(ValueError):
                found = [Standing.from_row(row) for row in rows]
                mine = [one for one in found if one.rank in post.host.ranks]
                self._judge.hear(mine, time.monotonic())

    def _hear_end(self, message: Message, post: _Post) -> None:
        rank, code = _number(message.get("rank")), _number(message.get("end"))
        if code <= 0 or rank not in post.host.ranks:
            return
        post.has_left = True
        text = str(message.get("text") or "")[:8000]
        logger.warning("rank %s on host %s ends with code %s", rank, post.host.name, code)
        name = f"host {post.host.name}"
        said = text if not text or name in text else f"{name}: {text}"
        self._ears.ended(code, said, at_once=bool(message.get("at_once")), rank=rank)

    def _drop(self, post: _Post) -> None:
        if post.line is not None:
            self._close(post.line)
            post.line = None

    def _close(self, line: Line) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(line)
        line.close()

    # Once per second.

    def _tick(self) -> None:
        now = time.monotonic()
        slept, self._ticked = now - self._ticked, now
        if slept > _SLEPT_SECONDS:
            logger.warning("this process did not run for %.0f s", slept)
            self._forgive(slept)
        standings = self._look()
        with self._lock:
            if self._over.is_set():
                return
            self._judge.hear(standings, now)
            self._strangers.turn_slow_away(now)
            beat = self._make_beat()
            for post in self._posts.values():
                if post.line is not None and not post.has_left:
                    self._answer(post.line, beat)
            if self._is_dismissed:
                return
            self._name_missing(now)
            lost = self._find_lost(now)
            text = lost.text if lost is not None else self._judge.judge(now)
        if text is not None:
            # Where somebody stands still those who wait for it show for what.
            self._end(text, with_stacks=lost is None or lost.answers)

    def _forgive(self, seconds: float) -> None:
        self._judge.forgive(seconds)
        for post in self._posts.values():
            if post.line is not None:
                post.line.heard += seconds
            if post.closed is not None:
                post.closed += seconds

    def _find_lost(self, now: float) -> Silence | None:
        for post in self._posts.values():
            if post.has_left:
                continue
            if post.closed is not None and now - post.closed >= _GRACE_SECONDS:
                text = "has gone: its connection closed without a farewell"
                return Silence(self._describe(post, text), answers=False)
            if post.line is None:
                continue
            silent = now - post.line.heard
            patience = self._judge.patience
            why = judge_silence(self._limits, silent, post.line, patience)
            if why is not None:
                return Silence(self._describe(post, why.text), why.answers)
            if self._limits.lost and silent >= self._limits.warned and not post.is_warned:
                post.is_warned = True
                logger.warning("%s is silent for %s", post.host, format_seconds(silent))
        return None

    def _describe(self, post: _Post, what: str) -> str:
        stood = self._judge.describe(post.host.ranks)
        last = f". When it was last heard, {stood}" if stood else ""
        return f"{post.host} {what}{last}"

    def _name_missing(self, now: float) -> None:
        """Say once which hosts have not called."""
        if self._is_missing_said or now - self._began < _ARRIVAL_SECONDS:
            return
        self._is_missing_said = True
        missing = [
            str(post.host)
            for post in self._posts.values()
            if post.line is None and post.closed is None and not post.has_left
        ]
        if missing and self._listener is not None:
            address, port = self._listener.getsockname()[:2]
            self._ears.warned(
                f"warning: {', '.join(missing)} cannot reach {address} port {port}, so nobody"
                " notices when something happens there. Open a port of this host to the others and"
                " name it: --watch.port 29600"
            )

    def _end(self, text: str, *, with_stacks: bool) -> None:
        if with_stacks:
            line = f"the run stands still; Python stacks follow: {text}"
            self._tell_all({"dump": line})
            self._ears.dump(line)
            text += ". Python stacks of all ranks that answer are in log/rank_NN.log"
            time.sleep(STACKS_SECONDS)
        self._ears.ended(LaunchError.exit_code, f"{text}. {GO_ON}", at_once=True)
        # The thread that acts says the rest to all hosts; nothing is judged any more.
        self._over.set()

    # What others are told.

    def _make_beat(self) -> Message:
        return {"beat": self._judge.patience}

    def _answer(self, line: Line, message: Message) -> None:
        # Who does not read is found by its silence.
        with contextlib.suppress(LineClosedError):
            line.send(message)

    def _tell_all(self, message: Message) -> None:
        # Also when the thread of the lookout is in the middle of something long.
        held = self._lock.acquire(timeout=1.0)
        try:
            for post in self._posts.values():
                if post.line is not None:
                    self._answer(post.line, message)
        finally:
            if held:
                self._lock.release()


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else -1

"""The part of the other hosts: their first ranks report to rank 0, and notice when it has gone."""

import contextlib
import logging
import select
import threading
import time
from collections.abc import Callable

from bigft.distributed.last_words import GO_ON
from bigft.distributed.lookout.limits import STACKS_SECONDS, TICK_SECONDS, Limits
from bigft.distributed.lookout.lines import Line, LineClosedError, Message, call
from bigft.distributed.lookout.parties import Door, Ears, Host
from bigft.distributed.lookout.silence import judge_silence
from bigft.distributed.lookout.standing import Standing
from bigft.errors import LaunchError
from bigft.units import format_seconds

logger = logging.getLogger(__name__)

_ARRIVAL_SECONDS = 30.0
_RETURN_SECONDS = 4.0
"""A connection may break although both ends are well: so long it is tried again."""

_HEARD_SECONDS = 2.0
_SLEPT_SECONDS = 5.0


def tell_once(door: Door, host: Host, rank: int, code: int, text: str, *, at_once: bool) -> bool:
    """Bring the end of a rank to rank 0 by a connection of its own; return whether it was heard."""
    hello = {"leader": host.leader, "token": door.token, "end": code, "rank": rank}
    # A token and an error fit into the first words; what is longer is cut.
    message = {**hello, "text": text[:2000], "at_once": at_once}
    try:
        line = call(door.addresses, door.port, message)
    except OSError as error:
        logger.info("rank 0 cannot be told: %s", error)
        return False
    try:
        line.connection.settimeout(_HEARD_SECONDS)
        return b"heard" in line.connection.recv(100)
    except OSError:
        return False
    finally:
        line.close()


class Follower:
    """Any rank that does not speak for its host: its leader reports, it only has last words."""

    def __init__(self, own: Host, door: Door | None) -> None:
        """Take its host, and where rank 0 listens."""
        self._own, self._door = own, door

    def start(self) -> None:
        """Do nothing."""

    def part(self) -> None:
        """Do nothing."""

    def dismiss(self, rank: int, code: int, *, at_once: bool) -> None:
        """Leave it to the leader, who sees this process end."""

    def tell(self, rank: int, code: int, text: str, *, at_once: bool) -> bool:
        """Bring last words to rank 0."""
        if self._door is None:
            return False
        return tell_once(self._door, self._own, rank, code, text, at_once=at_once)


class Outpost:
    """A thread of a host's first rank."""

    def __init__(
        self,
        limits: Limits,
        own: Host,
        centre: str,
        door: Door,
        look: Callable[[], list[Standing]],
        ears: Ears,
        *,
        speaks: bool,
    ) -> None:
        """Take who there is.

        Args:
            limits: How long rank 0 may be silent.
            own: This host.
            centre: Name of rank 0's host.
            door: Where it listens.
            look: Surveys this host's ranks.
            ears: Who acts.
            speaks: Whether this host says that rank 0 has gone; the others then leave silently.
        """
        self._limits, self._own, self._centre, self._door = limits, own, centre, door
        self._look, self._ears, self._speaks = look, ears, speaks
        self._patience = limits.silent(None)
        self._line: Line | None = None
        self._is_warned = False
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="bigft-lookout", daemon=True)

    def start(self) -> None:
        """Begin to report."""
        self._thread.start()

    def part(self) -> None:
        """Say farewell, and let everybody end as they like."""
        self._over.set()
        self._send({"bye": 0})
        self._thread.join(TICK_SECONDS + 1)
        if self._line is not None:
            self._line.close()

    def dismiss(self, rank: int, code: int, *, at_once: bool) -> None:
        """Tell rank 0 that a rank of this host ends, and how."""
        self._send({"end": code, "rank": rank, "at_once": at_once})

    def tell(self, rank: int, code: int, text: str, *, at_once: bool) -> bool:
        """Bring last words to rank 0."""
        return tell_once(self._door, self._own, rank, code, text, at_once=at_once)

    # The thread.

    def _run(self) -> None:
        try:
            if not self._connect(_ARRIVAL_SECONDS):
                logger.warning("rank 0 cannot be reached: nobody watches this host from outside")
                return
            while not self._over.is_set():
                self._report()
                self._listen_for(TICK_SECONDS)
                self._look_for_silence()
        except Exception:
            # Whatever goes wrong here must not end a run that is well.
            logger.exception("the lookout has ended; rank 0 is not watched any more")

    def _connect(self, seconds: float) -> bool:
        """Connect, and try again for some time."""
        hello = {"leader": self._own.leader, "token": self._door.token}
        deadline = time.monotonic() + seconds
        problem: object = None
        while not self._over.is_set():
            try:
                line = call(self._door.addresses, self._door.port, hello)
            except OSError as error:
                problem = error
            else:
                with self._lock:
                    self._line = line
                return True
            if time.monotonic() + 0.5 > deadline:
                break
            self._over.wait(0.5)
        logger.info("no connection to rank 0: %s", problem)
        return False

    def _report(self) -> None:
        self._send({"ranks": [one.to_row() for one in self._look()]})

    def _send(self, message: Message) -> None:
        # Also when the thread of the lookout is in the middle of something long.
        held = self._lock.acquire(timeout=1.0)
        try:
            # The thread of the lookout may let go of it at this moment.
            line = self._line
            if line is not None:
                # A closed connection is found by reading.
                with contextlib.suppress(LineClosedError):
                    line.send(message)
        finally:
            if held:
                self._lock.release()

    def _listen_for(self, seconds: float) -> None:
        """Obey what comes for so long; a pause of this process itself is nobody's silence."""
        deadline = time.monotonic() + seconds
        while not self._over.is_set() and self._line is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            poller = select.poll()
            poller.register(self._line, select.POLLIN)
            if poller.poll(left * 1000):
                self._receive(self._line)
        slept = time.monotonic() - deadline
        if slept > _SLEPT_SECONDS and self._line is not None:
            logger.warning("this process did not run for %.0f s", slept)
            self._line.heard += slept

    def _receive(self, line: Line) -> None:
        try:
            messages = line.receive()
        except LineClosedError as error:
            line.close()
            self._line = None
            logger.info("connection to rank 0 lost: %s", error)
            if not self._over.is_set() and not self._connect(_RETURN_SECONDS):
                self._lose("has gone: its connection is closed")
            return
        for message in messages:
            self._obey(message)

    def _obey(self, message: Message) -> None:
        if "bye" in message:
            self._over.set()
        elif "leave" in message:
            self._over.set()
            code, rank = message["leave"], message.get("rank")
            self._ears.ended(
                code if isinstance(code, int) and 0 < code < 256 else LaunchError.exit_code,
                "",
                at_once=bool(message.get("at_once")),
                rank=rank if isinstance(rank, int) else None,
            )
        elif "dump" in message:
            self._ears.dump(str(message["dump"])[:8000])
        elif isinstance(patience := message.get("beat"), int | float):
            self._patience = float(patience)

    def _look_for_silence(self) -> None:
        if self._line is None or self._over.is_set():
            return
        silent = time.monotonic() - self._line.heard
        why = judge_silence(self._limits, silent, self._line, self._patience)
        if why is not None:
            self._lose(why.text, with_stacks=why.answers)
        elif not self._limits.lost or silent < self._limits.warned:
            self._is_warned = False
        elif not self._is_warned:
            self._is_warned = True
            logger.warning("rank 0 is silent for %s", format_seconds(silent))

    def _lose(self, why: str, *, with_stacks: bool = False) -> None:
        if self._over.is_set():
            return
        self._over.set()
        text = f"rank 0 on host {self._centre} {why}. {GO_ON}"
        if with_stacks:
            self._ears.dump(f"the run stands still; Python stacks follow: {text}")
            time.sleep(STACKS_SECONDS)
        if not self._speaks:
            logger.error("%s", text)
        code = LaunchError.exit_code
        self._ears.ended(code, text if self._speaks else "", at_once=True)

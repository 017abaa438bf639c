"""Signals that ask a run to stop: noted at once, obeyed where nothing is lost.

A handler only writes a note. The training loop looks at it once per step, so that all ranks stop
after the same one and commit a checkpoint. Before and after the loop nothing can be committed, and
the note becomes an error at once.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from bigft.errors import StoppedError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""A scheduler's notice, Ctrl-C, and what Slurm sends with `--signal=USR1@SECONDS`."""

REPEAT_SECONDS = 1.0
"""A terminal and a launcher may both pass on one Ctrl-C; people need longer to press it again."""

BEFORE_TRAINING = "before its first step, with nothing new to commit"


class StopSignals:
    """What the signals of this process have asked for."""

    def __init__(self) -> None:
        """Start without a request; nothing is installed."""
        self.name: str | None = None
        """Who asked first: a signal's name, or other words; None while nobody has."""
        self.place = BEFORE_TRAINING
        """Where the run is, for the words of the error."""
        self.is_awaited = False
        """Whether the training loop looks at `name`; else a signal raises `StoppedError`."""
        self.is_over = False
        """Whether signals are ignored: the process is on its way out."""
        self._first: dict[int, float] = {}

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside the block; afterwards the handlers are as before.

        Does nothing in a thread other than the main one, where Python allows no handlers.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {n: signal.signal(n, self._note) for n in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Leave it to the block to look at `name` from time to time."""
        self.is_awaited = True
        yield
        # After an error it stays as it is: the error is what the run ends with.
        self.is_awaited = False

    def request(self, name: str) -> None:
        """Ask this rank to stop, as a signal would; from any thread."""
        self.name = self.name or name

    def check(self, place: str) -> None:
        """Say where the run is now, and stop here if that was asked for.

        Raises:
            StoppedError: It was.
        """
        self.place = place
        if self.name is not None:
            raise self.make_error()

    def make_error(self) -> StoppedError:
        """Build the error of a run that stops where it is."""
        return StoppedError(
            f"stopped by {self.name} {self.place}. Run the same command again to go on"
        )

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.is_over:
            return
        now = time.monotonic()
        is_new = not self._first
        if now - self._first.setdefault(number, now) >= REPEAT_SECONDS:
            # The same signal again: somebody does not want to wait. What is committed stays.
            self.is_over = True
            raise SystemExit(128 + number)
        self.request(signal.Signals(number).name)
        if is_new and not self.is_awaited:
            raise self.make_error()


def ignore_stop_signals() -> None:
    """Let a launcher that ends everybody not change the exit code of a process that is leaving."""
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

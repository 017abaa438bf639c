"""Where words go: rank 0's console for people, `log/rank_NN.log` for everything else.

Third-party libraries write to standard output and standard error at the level of file
descriptors (compilers, C++ warnings, `print`). While a run is open, both descriptors lead to the
rank's log file; bigft keeps the terminal for itself through `Console`.
"""

import contextlib
import ctypes
import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from bigft.redact import RedactedStream, redact_text

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _RedactingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact_text(super().format(record))


class Console:
    """What a person sees: results on `out`, progress and notes on `err`; silent off rank 0."""

    def __init__(self, out: TextIO, err: TextIO, *, is_rank_zero: bool) -> None:
        """Wrap two text streams."""
        self.out = out
        self.err = err
        self.is_rank_zero = is_rank_zero

    def say(self, text: str) -> None:
        """Write one line for the person and for the log."""
        text = redact_text(text)
        logging.getLogger("bigft").info("%s", text)
        if self.is_rank_zero:
            self.err.write(text + "\n")
            self.err.flush()

    def result(self, text: str) -> None:
        """Write the result of the command to standard output."""
        if self.is_rank_zero:
            self.out.write(redact_text(text) + "\n")
            self.out.flush()


def plain_console() -> Console:
    """Return a console on the process's own streams, for commands that keep no log."""
    return Console(sys.stdout, sys.stderr, is_rank_zero=True)


@contextlib.contextmanager
def output_to_log(path: Path, *, is_rank_zero: bool) -> Iterator[Console]:
    """Send both standard descriptors to a log file and yield the terminal as a `Console`.

    On leaving, also through an exception, the descriptors are as before, so that errors reach
    the person. What Python code writes to the log is redacted; what C code writes is not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    streams = [os.fdopen(os.dup(fd), "w", encoding="utf-8", errors="replace") for fd in saved]
    faults_shown = faulthandler.is_enabled()
    handler = _start_log(path)
    # A crash below Python (SIGSEGV, SIGABRT) would otherwise be visible in the log only.
    faulthandler.enable(file=streams[1])
    # `kill -USR2 PID` writes the Python stacks into the log, also of a rank stuck in a collective.
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
    standard = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _LogStream(standard[0]), _LogStream(standard[1])
    try:
        yield Console(streams[0], streams[1], is_rank_zero=is_rank_zero)
    finally:
        faulthandler.unregister(signal.SIGUSR2)
        faulthandler.disable()
        if faults_shown:
            faulthandler.enable()
        sys.stdout, sys.stderr = standard
        _flush_all()
        # What a full disk did not take would come out on the terminal later.
        _point_at(os.open(os.devnull, os.O_WRONLY))
        _flush_all()
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(handler)
        _finish(handler.close)
        for stream in streams:
            stream.close()
        for fd in saved:
            os.close(fd)


def _flush_all() -> None:
    """Empty the buffers of Python and of C libraries."""
    _finish(sys.stdout.flush)
    _finish(sys.stderr.flush)
    ctypes.CDLL(None).fflush(None)


def _point_at(fd: int) -> None:
    """Let both standard descriptors lead to an open file, which is theirs from now on."""
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def _finish(action: Callable[[], object]) -> None:
    """Write the rest of a log; on a full disk the error that ends the run counts, not this one."""
    with contextlib.suppress(OSError):
        action()


class _LogStream(RedactedStream):
    """Standard output or error on its way to the log: a full disk must not end what prints."""

    def write(self, text: str) -> int:
        """Write what can be written, without the secrets in it."""
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be."""
        with contextlib.suppress(OSError):
            super().flush()


def _start_log(path: Path) -> logging.Handler:
    _point_at(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644))
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_RedactingFormatter(_FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(os.environ.get("BIGFT_LOG_LEVEL", "INFO").upper())
    logging.captureWarnings(True)
    return handler

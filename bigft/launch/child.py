"""Programs that are asked, each within a time limit of its own."""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigft.units import escape_controls

_MOST_BYTES = 8 << 20
_LONGEST_WORDS = 1000
_REST_SECONDS = 1.0
"""For the last words of a program that was ended."""


_ASKED: "set[subprocess.Popen[bytes]]" = set()
"""Those that are asked now, from any thread."""

_LEAVING: list[bool] = []
"""Something in it: this process leaves. A list, and no lock, because a signal handler adds to it
in the middle of another one."""


@dataclass(frozen=True)
class Answer:
    """What a program said."""

    code: int | None
    """Exit code, negative for a signal; None: it did not end in time, and was ended."""

    out: str = ""
    err: str = ""

    @property
    def last_words(self) -> str:
        """The last line that says something, of the errors or else of the output."""
        lines = [line.strip() for text in (self.out, self.err) for line in text.splitlines()]
        last = next((line for line in reversed(lines) if line), "no output")
        return escape_controls(last)[:_LONGEST_WORDS]

    @property
    def last_line(self) -> str:
        """The last line of the output: a host may greet everybody who logs in before it."""
        return self.out.strip().rpartition("\n")[2]


def ask(
    command: Sequence[str],
    seconds: float,
    *,
    environ: Mapping[str, str] | None = None,
    text: str = "",
) -> Answer:
    """Run a program, and end it with all its children when its time is over.

    Of what it says the last megabytes are kept: it may be another host that says it.

    Args:
        command: Words; nothing is given to a shell.
        seconds: Time limit.
        environ: Environment variables; absent: those of this process.
        text: What it reads.

    Raises:
        OSError: It cannot be started.
    """
    if _LEAVING:
        return Answer(None)
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ if environ is None else environ),
        bufsize=0,
        start_new_session=True,
    ) as process:
        talk = _Talk(process, text.encode("utf-8", "surrogateescape"))
        _ASKED.add(process)
        try:
            if _LEAVING:
                _end(process)
            is_over = talk.go_on(time.monotonic() + seconds)
        except BaseException:
            _end(process)
            raise
        finally:
            _ASKED.discard(process)
        if not is_over:
            _end(process)
            talk.go_on(time.monotonic() + _REST_SECONDS)
        return Answer(process.wait() if is_over else None, *talk.said())


def end_asked() -> None:
    """End all programs that are asked now or later: this process leaves. A signal handler may."""
    _LEAVING.append(True)
    for process in list(_ASKED):
        _end(process)


class _Talk:
    """Both sides of what is said between this process and another one."""

    def __init__(self, process: "subprocess.Popen[bytes]", text: bytes) -> None:
        self._process = process
        self._text = memoryview(text)
        self._selector = selectors.DefaultSelector()
        self._said = {process.stdout: bytearray(), process.stderr: bytearray()}
        for pipe in self._said:
            self._selector.register(pipe, selectors.EVENT_READ)  # type: ignore[arg-type]
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        self._selector.register(process.stdin, selectors.EVENT_WRITE)

    def go_on(self, deadline: float) -> bool:
        """Listen until the other side has left; whether it has, before the deadline."""
        while self._selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            for key, _ in self._selector.select(left):
                pipe: Any = key.fileobj
                is_done = self._hear(pipe) if pipe in self._said else self._tell(pipe)
                if is_done:
                    self._selector.unregister(pipe)
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, deadline - time.monotonic()))
        return self._process.returncode is not None

    def said(self) -> tuple[str, str]:
        """Return output and errors."""
        out, err = (
            said[-_MOST_BYTES:].decode("utf-8", "replace").replace("\r\n", "\n")
            for said in self._said.values()
        )
        return out, err

    def _hear(self, pipe: Any) -> bool:
        data = os.read(pipe.fileno(), 1 << 16)
        said = self._said[pipe]
        said += data
        if len(said) > 2 * _MOST_BYTES:
            del said[:-_MOST_BYTES]
        return not data

    def _tell(self, pipe: Any) -> bool:
        try:
            self._text = self._text[os.write(pipe.fileno(), self._text[: 1 << 16]) :]
        except BlockingIOError:
            return False
        except OSError:
            # It does not read, or has left.
            return True
        return not self._text


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)

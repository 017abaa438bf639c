"""Programs that are asked, each within a time limit of its own."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


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
        return next((line for line in reversed(lines) if line), "no output")


def ask(
    command: Sequence[str],
    seconds: float,
    *,
    environ: Mapping[str, str] | None = None,
    text: str = "",
) -> Answer:
    """Run a program, and end it with all its children when its time is over.

    Args:
        command: Words; nothing is given to a shell.
        seconds: Time limit.
        environ: Environment variables; absent: those of this process.
        text: What it reads.

    Raises:
        OSError: It cannot be started.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ if environ is None else environ),
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(text, timeout=seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            return Answer(None, out, err)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return Answer(process.returncode, out, err)

"""A trial as a child process: started, watched from outside, asked to stop."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigft.config.flags import to_path
from bigft.config.request import Request
from bigft.distributed.children import find_free_port, leave_launcher
from bigft.distributed.claim import claimed
from bigft.errors import LaunchError
from bigft.redact import redact_text

CONSOLE_NAME = "console.log"

_TAIL_BYTES = 8192
_LONGEST_REASON = 300
_FREE_SECONDS = 600.0
"""How long a run may take to commit after its launcher has gone."""


_GONE_SECONDS = 60.0
"""How long processes of a run may take to leave after it has let go of its folder."""


class Child:
    """One training run in its own session, so that Ctrl-C reaches the sweep alone."""

    def __init__(
        self, command: Sequence[str], folder: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        """Start it; what it says goes to `console.log` of its folder.

        Args:
            command: Words; the first is the full path of a program.
            folder: The run folder of the trial.
            environ: The child's environment; this process's by default.
        """
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._console = folder / CONSOLE_NAME
        tied = [sys.executable, "-m", "bigft.search.tied", str(os.getpid())]
        with self._console.open("ab") as console:
            self._start = console.tell()
            self._process = subprocess.Popen(
                [*tied, *command],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=None if environ is None else dict(environ),
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to commit what it has and leave."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait until it is gone, its ranks too, and return its exit code."""
        code = self._process.wait()
        # A launcher that is stopped leaves before its ranks, which still commit.
        wait_until_free(self._folder)
        # They hold memory of the device until they are gone, and the next trial needs it.
        end = time.monotonic() + _GONE_SECONDS
        while _has_members(self._process.pid) and time.monotonic() < end:
            time.sleep(0.1)
        return code

    def last_words(self) -> str:
        """Return what it said last: bigft's own message, or else its last line."""
        with self._console.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._start, end - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip()]
        starts = [
            place for place, line in enumerate(said) if re.match(r"bigft(, rank \d+)?: ", line)
        ]
        words = " ".join(said[starts[-1] :] if starts else said[-1:])
        # They end in a table on the terminal, which nothing in them may steer.
        plain = "".join(letter if letter.isprintable() else "?" for letter in words)
        return redact_text(plain)[:_LONGEST_REASON]


@contextlib.contextmanager
def child_running(
    command: Sequence[str], folder: Path, environ: Mapping[str, str] | None = None
) -> Iterator[Child]:
    """Start a child; when the block is left early, by an error or a signal, it is stopped."""
    child = Child(command, folder, environ)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.stop()


class MetricRows:
    """Reads `metrics.jsonl` while it grows."""

    def __init__(self, folder: Path, metric: str) -> None:
        """Begin at the start of the file, which may not exist yet."""
        self._path = folder / "metrics.jsonl"
        self._metric = metric
        self._place = 0
        self.names: set[str] = set()
        """Metrics of evaluations seen so far."""
        self.last: float | None = None
        """Last value of the metric; None while there is none, and when it is not finite."""
        self.values: dict[int, float] = {}
        """Step -> value, where it is finite."""
        self.has_metric = False

    def read(self) -> list[tuple[int, float]]:
        """Return step and metric of the evaluations that are new."""
        found: list[tuple[int, float]] = []
        for row in self._read_rows():
            self.names |= {name for name in row if name.startswith("eval_")}
            if self._metric not in row:
                continue
            self.has_metric = True
            value, step = row[self._metric], row.get("step")
            self.last = float(value) if isinstance(value, int | float) else None
            if self.last is not None and isinstance(step, int):
                found.append((step, self.last))
                self.values[step] = self.last
        return found

    def _read_rows(self) -> Iterator[dict[str, Any]]:
        try:
            with self._path.open("rb") as file:
                # A run that goes on first cuts off a line that its end left unfinished.
                file.seek(min(self._place, file.seek(0, os.SEEK_END)))
                block = file.read()
        except FileNotFoundError:
            return
        whole = block.rpartition(b"\n")[0]
        self._place += len(whole) + 1 if whole else 0
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
                    yield row


def build_command(
    request: Request, settings: Mapping[str, str], folder: Path, num_gpus: int | None
) -> list[str]:
    """Return the command line of a trial.

    Args:
        request: The run that the sweep was given.
        settings: Searched path -> value, in the place of what the request says.
        folder: The run folder of the trial.
        num_gpus: Ranks, started by the launcher; None: one process.
    """
    words = ["train"]
    words += [f"--config={request.config}"] if request.config else []
    words += [f"--recipe={request.recipe}"] if request.recipe else []
    words += [f"--{name}={text}" for name, text in replace_settings(request, settings).items()]
    words += [f"--output_dir={folder}", "--resume=auto"]
    if num_gpus is None:
        return [sys.executable, "-m", "bigft", *words]
    # By its module: beside the interpreter, on PATH or not, and for an installed bigft too.
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(num_gpus)]
    return [*launcher, "--master_port", str(find_free_port()), "--module", "bigft", *words]


def replace_settings(request: Request, settings: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of a request with some of them replaced, whatever they are called."""
    left_out = {*settings, "output_dir"}
    kept = {n: text for n, text in request.settings.items() if to_path(n) not in left_out}
    return {**kept, **settings}


def build_environment(environ: Mapping[str, str], num_gpus: int | None) -> dict[str, str]:
    """Return the environment of a trial: that of the sweep, which is no rank itself."""
    own = leave_launcher(environ)
    if num_gpus is not None:
        # Without accelerators the launcher counts devices by it.
        own.setdefault("LOCAL_SIZE", str(num_gpus))
    return own


def wait_until_free(folder: Path, seconds: float = _FREE_SECONDS) -> None:
    """Wait until no run holds a run folder.

    Raises:
        LaunchError: One still does after all this time.
    """
    end = time.monotonic() + seconds
    while folder.is_dir():
        try:
            with claimed(folder):
                return
        except LaunchError:
            if time.monotonic() > end:
                raise
        time.sleep(0.1)


def _has_members(session: int) -> bool:
    """Say whether a process of a session still runs."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The name in parentheses may contain anything, also a parenthesis.
            state, _, _, number = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(number) == session and state != "Z":
                return True
    return False

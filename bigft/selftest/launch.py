"""The ranks of a selftest as child processes: started, listened to, and ended for certain."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigft.distributed.children import find_free_port, leave_launcher

PLAN_NAME = "plan.json"
EVENTS_NAME = "events.jsonl"
CONSOLE_NAME = "console.log"

_GRACE_SECONDS = 10.0


class Ranks:
    """A launcher and its ranks, in a session of their own."""

    def __init__(
        self, module: str, folder: Path, ranks: int, environ: Mapping[str, str], *, on_cpu: bool
    ) -> None:
        """Start them.

        Args:
            module: What each rank runs, with `folder` as its only word.
            folder: Of the selftest; what the ranks say goes to `console.log`.
            ranks: How many.
            environ: Of this process.
            on_cpu: Whether they are to leave accelerators alone.
        """
        self._console = folder / CONSOLE_NAME
        words = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks)]
        words += ["--master_port", str(find_free_port()), "--module", module, str(folder)]
        with self._console.open("wb") as console:
            self._process = subprocess.Popen(
                # It is told to end when this process dies.
                [sys.executable, "-m", "bigft.search.tied", str(os.getpid()), *words],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=_make_environment(environ, folder, ranks, on_cpu=on_cpu),
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """Return the exit code of the launcher; None while it runs."""
        return self._process.poll()

    def end(self) -> None:
        """End what still runs; nothing of it is left."""
        self._signal_all(signal.SIGTERM)
        until = time.monotonic() + _GRACE_SECONDS
        while _list_session(self._process.pid) and time.monotonic() < until:
            self._process.poll()
            time.sleep(0.1)
        self._signal_all(signal.SIGKILL)
        self._process.wait()

    def last_words(self) -> str:
        """Return what bigft said last, or else the last line of all."""
        lines = self._console.read_text(errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip()]
        own = [line for line in said if line.startswith("bigft")]
        return (own or said or ["no word"])[-1][:400]

    def _signal_all(self, number: signal.Signals) -> None:
        for process in _list_session(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)


class EventReader:
    """Reads what rank 0 writes, while it writes."""

    def __init__(self, folder: Path) -> None:
        """Begin with what comes next."""
        self._path = folder / EVENTS_NAME
        self._place = self._path.stat().st_size if self._path.exists() else 0

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield what is new."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._place)
            whole = file.read().rpartition(b"\n")[0]
        self._place += len(whole) + 1 if whole else 0
        for line in whole.splitlines():
            yield json.loads(line)


def _make_environment(
    environ: Mapping[str, str], folder: Path, ranks: int, *, on_cpu: bool
) -> dict[str, str]:
    own = leave_launcher(environ)
    # Without accelerators the launcher counts devices by it.
    own["LOCAL_SIZE"] = str(ranks)
    own["TMPDIR"] = str(folder)
    if on_cpu:
        own["DS_ACCELERATOR"] = "cpu"
        # Ranks that wait for each other with more threads than cores take ten times as long.
        own.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    return own


def _list_session(session: int) -> Sequence[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The name in parentheses may contain anything, also a parenthesis.
            state, _, _, number = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(number) == session and state != "Z":
                found.append(int(folder.name))
    return found

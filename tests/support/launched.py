"""A run under the real deepspeed launcher, watched from outside and disturbed."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from small_runs import read_steps_so_far

ROOT = Path(__file__).resolve().parents[2]


class Launched:
    """`deepspeed launch_scripts/run.py ...` in a session of its own."""

    def __init__(self, ranks: int, folder: Path, *words: Any, **changes: str) -> None:
        self.folder = folder
        self._ranks = ranks
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        tools = str(Path(sys.executable).parent)
        environment = {
            **os.environ,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "LOCAL_SIZE": str(ranks),
            **changes,
        }
        command = ["deepspeed", "--num_gpus", str(ranks), "--master_port", port]
        command += [str(ROOT / "launch_scripts/run.py"), "--output_dir", str(folder)]
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.output = folder.parent / f"{folder.name}.out"
        with self.output.open("w") as output:
            self.runner = subprocess.Popen(
                [*command, *map(str, words)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=ROOT,
                start_new_session=True,
            )

    @property
    def launcher(self) -> int:
        """The process between `deepspeed` and the ranks."""
        (pid,) = _children(self.runner.pid)
        return pid

    def ranks(self) -> dict[int, int]:
        """Process ids by rank, as soon as all are there."""
        found: dict[int, int] = {}

        def find() -> bool:
            with contextlib.suppress(OSError, ValueError):
                for pid in _children(self.launcher):
                    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                    ranks = [word[5:] for word in environ if word.startswith(b"RANK=")]
                    if ranks:
                        found[int(ranks[0])] = pid
            return len(found) == self._ranks

        self.wait_for(find, "the ranks")
        return found

    def descendants(self) -> list[int]:
        """Every process below `deepspeed`."""
        found, waiting = [], [self.runner.pid]
        while waiting:
            with contextlib.suppress(OSError):
                children = _children(waiting.pop())
                found += children
                waiting += children
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl about steps."""
        return read_steps_so_far(self.folder)

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda: any(row["step"] >= step for row in self.rows()), f"step {step}")

    def wait_for(self, happens: Callable[[], bool], what: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not happens():
            assert self.runner.poll() is None, f"ended before {what}:\n{self.said()[-3000:]}"
            assert time.monotonic() < end, f"no {what} in {seconds} s:\n{self.said()[-3000:]}"
            time.sleep(0.05)

    def said(self) -> str:
        """Everything that reached the terminal."""
        return self.output.read_text(errors="replace")

    def own_words(self) -> list[str]:
        """Last words of bigft: lines that it begins with its name."""
        return [line for line in self.said().splitlines() if line.startswith("bigft")]

    def wait(self, seconds: float = 120) -> int:
        """Wait for the end of `deepspeed` itself."""
        return self.runner.wait(seconds)

    def wait_for_all_gone(self, pids: list[int], seconds: float) -> float:
        """Wait until none of these processes runs; return how long it took."""
        start = time.monotonic()
        while any(_runs(pid) for pid in pids):
            assert time.monotonic() - start < seconds, f"still there: {pids}\n{self.said()[-3000:]}"
            time.sleep(0.02)
        return time.monotonic() - start

    def close(self) -> None:
        """Leave nothing behind."""
        for pid in _session(self.runner.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.runner.wait()


@contextlib.contextmanager
def launched(ranks: int, folder: Path, *words: Any, **changes: str) -> Iterator[Launched]:
    """Start a run and make sure that it has gone in the end."""
    run = Launched(ranks, folder, *words, **changes)
    try:
        yield run
    finally:
        run.close()


def checkpoints(folder: Path) -> list[str]:
    """Names of the committed checkpoints."""
    return sorted(path.parent.name for path in folder.glob("checkpoints/step_*/manifest.json"))


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def _session(leader: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader:
                found.append(int(folder.name))
    return found


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

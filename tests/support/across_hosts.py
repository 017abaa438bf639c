"""A run whose ranks are on several simulated hosts, each started there over ssh."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from host_launchers import start_launcher
from simulated_hosts import SimulatedHosts
from small_runs import read_steps_so_far

ROOT = Path(__file__).resolve().parents[2]


class Across:
    """`deepspeed.launcher.launch` on every host, as DeepSpeed's own launcher starts it."""

    def __init__(
        self,
        hosts: SimulatedHosts,
        folder: Path,
        *words: Any,
        ranks: int = 1,
        program: str = "launch_scripts/run.py",
        **changes: str,
    ) -> None:
        self.hosts, self.folder = hosts, folder
        self._ranks = ranks
        folder.parent.mkdir(parents=True, exist_ok=True)
        environ = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/support'}",
            "HF_HUB_OFFLINE": "1",
            **changes,
        }
        line = ["--no_local_rank", ROOT / program, "--output_dir", folder, *words]
        self.programs = {
            node + 1: start_launcher(
                hosts, hosts.names, node, line, self._output(node + 1), slots=ranks, **environ
            )
            for node in range(len(hosts.names))
        }

    def _output(self, number: int) -> Path:
        return self.folder.parent / f"{self.folder.name}.{number}.out"

    def host_of(self, rank: int) -> int:
        """Number of the host on which a rank is."""
        return rank // self._ranks + 1

    def pid(self, rank: int) -> int:
        """Process id of a rank, as this machine counts."""
        for pid in self.hosts.processes(self.host_of(rank), "run"):
            with contextlib.suppress(OSError):
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                if f"RANK={rank}".encode() in variables and _is_launcher(parent):
                    return pid
        raise AssertionError(f"no rank {rank}")

    def send(self, rank: int, number: int) -> None:
        """Send a signal to a rank."""
        os.kill(self.pid(rank), number)

    def rows(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl about steps."""
        return read_steps_so_far(self.folder)

    def wait_for_step(self, step: int) -> None:
        """Wait until a step is done."""
        self.wait_for(lambda: any(row["step"] >= step for row in self.rows()), f"step {step}")

    def wait_for(self, happens: Callable[[], bool], what: str, seconds: float = 120) -> None:
        """Wait for something, while the run is alive."""
        end = time.monotonic() + seconds
        while not happens():
            alive = [p.poll() is None for p in self.programs.values()]
            assert all(alive), f"ended before {what}:\n{self.said()[-6000:]}"
            assert time.monotonic() < end, f"no {what} in {seconds} s:\n{self.said()[-6000:]}"
            time.sleep(0.05)

    def said(self, number: int | None = None) -> str:
        """What reached the terminal from one host, or from all."""
        numbers = [number] if number is not None else list(self.programs)
        return "".join(self._output(n).read_text(errors="replace") for n in numbers)

    def own_words(self, number: int | None = None) -> list[str]:
        """Last words of bigft."""
        return [line for line in self.said(number).splitlines() if line.startswith("bigft")]

    def wait_for_ranks_to_leave(
        self, seconds: float, but: tuple[int, ...] = (), hosts: tuple[int, ...] = ()
    ) -> float:
        """Wait until no rank runs, except some; return how long it took."""
        start = time.monotonic()
        count = self._ranks * len(self.hosts.names)
        waited = [r for r in range(count) if r not in but]
        waited = [r for r in waited if not hosts or self.host_of(r) in hosts]
        while left := [r for r in waited if self._runs(r)]:
            assert time.monotonic() - start < seconds, f"{left} stay:\n{self.said()[-6000:]}"
            time.sleep(0.05)
        return time.monotonic() - start

    def _runs(self, rank: int) -> bool:
        with contextlib.suppress(AssertionError):
            return self.pid(rank) > 0
        return False

    def codes(self, seconds: float = 60) -> dict[int, int]:
        """Exit codes of the launchers, by host."""
        return {number: program.wait(seconds) for number, program in self.programs.items()}

    def close(self) -> None:
        """Leave nothing behind."""
        for program in self.programs.values():
            program.kill()
            program.wait()
        for number in self.programs:
            for pid in self.hosts.processes(number, "run.py"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def across(hosts: SimulatedHosts, folder: Path, *words: Any, **options: Any) -> Iterator[Across]:
    """Start a run on all hosts and make sure that it has gone in the end."""
    run = Across(hosts, folder, *words, **options)
    try:
        yield run
    finally:
        run.close()


def _is_launcher(pid: int) -> bool:
    return b"deepspeed.launcher.launch" in Path(f"/proc/{pid}/cmdline").read_bytes()


def words_for(shared: Path, **changes: Any) -> list[Any]:
    """A run of a tiny model that would go on for hours, with limits for the impatient."""
    settings = {
        "config": ROOT / "ds_configs/zero3.json",
        "model": shared / "model",
        "data": shared / "chat.jsonl",
        "data.loading.cache_dir": shared / "cache",
        "data.eval_fraction": 0.1,
        "evaluation.eval_on_start": "false",
        "max_length": 64,
        "max_steps": 100_000,
        "watch.steady_seconds": 8,
        "watch.lost_seconds": 6,
        **changes,
    }
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def plant(*rules: dict[str, Any]) -> dict[str, str]:
    """Options of a run in which something is wrong; see `disturbed_run.py`."""
    return {"program": "tests/support/disturbed_run.py", "DISTURB": json.dumps(rules)}

"""One run on several simulated hosts, its ranks started over ssh on each of them."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from host_launchers import start_launcher
from simulated_hosts import SimulatedHosts

ROOT = Path(__file__).resolve().parents[2]
_PORT = 29_571


class ApartRun:
    """The launchers of one start, one per host."""

    def __init__(
        self,
        hosts: SimulatedHosts,
        folder: Path,
        words: Sequence[Any],
        *,
        numbers: Sequence[int] = (),
        slots: int = 1,
    ) -> None:
        """Start them.

        Args:
            hosts: Simulated.
            folder: Where their terminals go.
            words: Of `bigft train`.
            numbers: Of the hosts that take part, from 1; all by default.
            slots: Ranks on each.
        """
        self._numbers = list(numbers) or list(range(1, len(hosts.names) + 1))
        names = [hosts.names[number - 1] for number in self._numbers]
        folder.mkdir(parents=True, exist_ok=True)
        kept = {key: os.environ[key] for key in ("XDG_CACHE_HOME", "HF_HOME") if key in os.environ}
        environ = {**kept, "PATH": hosts.write_tools(folder / "tools"), "LOCAL_SIZE": str(slots)}
        self.outputs = [folder / f"host{number}.out" for number in self._numbers]
        line = [ROOT / "launch_scripts/run.py", *words]
        self._children = [
            start_launcher(
                hosts, names, node, line, output,
                slots=slots, port=_PORT, BIGFT_HOST=names[node], **environ,
            )
            for node, output in enumerate(self.outputs)
        ]  # fmt: skip

    def wait(self, seconds: float = 150) -> list[int]:
        """Wait for all of them; their exit codes."""
        deadline = time.monotonic() + seconds
        try:
            return [child.wait(max(0.1, deadline - time.monotonic())) for child in self._children]
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"no end in {seconds} s:\n{self.said()}") from error
        finally:
            self.close()

    def said(self) -> str:
        """Everything that reached the terminals."""
        return "\n".join(
            f"--- {one.name}\n{one.read_text(errors='replace')[-4000:]}" for one in self.outputs
        )

    def wait_for(self, happens: Any, what: str, seconds: float = 120) -> None:
        """Wait until something happens while the run goes on."""
        deadline = time.monotonic() + seconds
        while not happens():
            assert all(one.poll() is None for one in self._children), (
                f"ended before {what}:\n{self.said()}"
            )
            assert time.monotonic() < deadline, f"no {what} in {seconds} s:\n{self.said()}"
            time.sleep(0.02)

    def close(self) -> None:
        """End what is left of the connections."""
        for child in self._children:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    child.send_signal(signal.SIGKILL)
                child.wait()


def run_apart(hosts: SimulatedHosts, folder: Path, words: Sequence[Any], **options: Any) -> str:
    """Run to the end; what was said. Every host must end well."""
    run = ApartRun(hosts, folder, words, **options)
    codes = run.wait()
    assert codes == [0] * len(codes), f"{codes}\n{run.said()}"
    return run.said()

"""One run on several simulated hosts, its ranks started over ssh on each of them."""

import base64
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
        table = json.dumps({name: list(range(slots)) for name in names})
        info = base64.urlsafe_b64encode(table.encode()).decode()
        folder.mkdir(parents=True, exist_ok=True)
        environ = {
            **{
                name: os.environ[name]
                for name in ("XDG_CACHE_HOME", "HF_HOME")
                if name in os.environ
            },
            "PATH": hosts.write_tools(folder / "tools"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "GLOO_SOCKET_IFNAME": "eth0",
            "LOCAL_SIZE": str(slots),
        }
        self.outputs = [folder / f"host{number}.out" for number in self._numbers]
        self._children = []
        for node, (name, output) in enumerate(zip(names, self.outputs, strict=True)):
            command = [
                "env", *(f"{key}={value}" for key, value in environ.items()), f"BIGFT_HOST={name}",
                sys.executable, "-m", "deepspeed.launcher.launch", f"--world_info={info}",
                f"--node_rank={node}", f"--master_addr={names[0]}", f"--master_port={_PORT}",
                str(ROOT / "launch_scripts/run.py"), *map(str, words),
            ]  # fmt: skip
            inner = f"cd {shlex.quote(str(ROOT))} && exec {shlex.join(command)}"
            with output.open("wb") as file:
                ssh = [
                    "sh",
                    "-c",
                    hosts.write_ssh(),
                    "ssh",
                    "-o",
                    "BatchMode=yes",
                    "--",
                    name,
                    inner,
                ]
                child = subprocess.Popen(
                    ssh, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
                )
            self._children.append(child)

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

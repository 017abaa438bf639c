"""`bigft launch` on simulated hosts, watched from outside and disturbed."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from simulated_hosts import SimulatedHosts
from small_runs import read_steps_so_far

ROOT = Path(__file__).resolve().parents[2]
RANK = "bigft.cli import main"
"""In the command line of every rank that a launch has started."""

CONFIG = "ds_configs/zero3_offload.json"
WORDS = ["--config", CONFIG, "--max_length", 64, "--max_steps", 8, "--save_steps", 2]
WORDS += ["--data.eval_fraction", 0]
QUICK = ["--check", "off"]


class LaunchRun:
    """One `bigft launch -- train ...` in a session of its own."""

    def __init__(
        self,
        hosts: SimulatedHosts,
        folder: Path,
        options: Sequence[Any],
        words: Sequence[Any],
        *,
        slots: Sequence[int] = (),
        said: Path | None = None,
        **changes: str,
    ) -> None:
        """Start it.

        Args:
            hosts: Where.
            folder: Of the run.
            options: Of the launch.
            words: Of the run.
            slots: Ranks on each host; absent: one.
            said: Folder for what it says; absent: beside that of the run.
            changes: Environment variables.
        """
        self.hosts, self.folder = hosts, folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        hostfile = hosts.write_hostfile(folder.parent / f"{folder.name}.hosts", slots)
        environ = {
            **os.environ,
            "PATH": hosts.write_tools(hosts.folder / "bin"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            **changes,
        }
        command = [sys.executable, "-m", "bigft", "launch", "--hostfile", hostfile, *options]
        command += ["--", "train", "--output_dir", folder, *words]
        place = said or folder.parent
        self.out, self.err = (place / f"{folder.name}.{name}" for name in ("out", "err"))
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                list(map(str, command)),
                stdout=out,
                stderr=err,
                env=environ,
                cwd=ROOT,
                start_new_session=True,
            )

    def said(self) -> str:
        return self.err.read_text(errors="replace") + self.out.read_text(errors="replace")

    def said_by_errors(self) -> str:
        """Standard error alone: it only grows at its end."""
        return self.err.read_text(errors="replace")

    def told(self) -> list[str]:
        """Lines of the launcher itself."""
        return re.findall(r"^bigft launch [\d:]+: (.*)$", self.said(), re.M)

    def rows(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl about steps, on the first host."""
        folder = self.folder
        with contextlib.suppress(ValueError):
            folder = self.hosts.open_private(1, folder.parent) / folder.name
        return read_steps_so_far(folder)

    def wait_for_step(self, step: int, seconds: float = 240) -> None:
        self.wait_for(
            lambda: any(row["step"] >= step for row in self.rows()), f"step {step}", seconds
        )

    def wait_for(self, happens: Callable[[], bool], what: str, seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while not happens():
            assert self.process.poll() is None, f"ended before {what}:\n{self.said()[-5000:]}"
            assert time.monotonic() < end, f"no {what} in {seconds} s:\n{self.said()[-5000:]}"
            time.sleep(0.05)

    def ranks(self, number: int) -> list[int]:
        """Processes of the ranks on a host."""
        return [
            pid
            for pid in self.hosts.processes(number, RANK)
            if "deepspeed.launcher" not in _command(pid) and "ssh" not in _command(pid)[:20]
        ]

    def wait(self, seconds: float = 300) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {seconds} s:\n{self.said()[-5000:]}") from None

    def wait_for_no_orphans(self, seconds: float) -> float:
        """Wait until nothing of the launch runs on any host; returns how long it took."""
        start = time.monotonic()
        while True:
            left = {
                number: [_command(pid)[:120] for pid in self.hosts.processes(number, "bigft")]
                for number in range(1, len(self.hosts.names) + 1)
            }
            if not any(left.values()):
                return time.monotonic() - start
            assert time.monotonic() - start < seconds, f"orphans: {left}\n{self.said()[-3000:]}"
            time.sleep(0.1)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextlib.contextmanager
def launch(*args: Any, **named: Any) -> Iterator[LaunchRun]:
    """Start a launch and make sure that it has gone in the end."""
    run = LaunchRun(*args, **named)
    try:
        yield run
    finally:
        run.close()


def deepspeed_by_pdsh(hosts: SimulatedHosts, folder: Path) -> subprocess.CompletedProcess[str]:
    """DeepSpeed's own launcher, with what it does not find out by itself."""
    variables = {"GLOO_SOCKET_IFNAME": "eth0", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    file = folder.parent / "ds_env"
    file.write_text("".join(f"{name}={text}\n" for name, text in variables.items()))
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    command = ["deepspeed", "--hostfile", hosts.write_hostfile(folder.parent / "hosts")]
    command += ["--master_addr", hosts.names[0], "--master_port", port, "launch_scripts/run.py"]
    tools = {"PATH": hosts.write_tools(hosts.folder / "bin"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        list(map(str, [*command, *WORDS, "--output_dir", folder])),
        cwd=ROOT,
        env={**os.environ, **tools, "DS_ENV_FILE": str(file)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def train_here(folder: Path, ranks: int, *words: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bigft", "launch", "--num_gpus", ranks, "--", "train"]
    command += ["--output_dir", folder, *WORDS, *words]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300
    )


def read_losses(folder: Path) -> dict[int, float]:
    """The loss of every step, as it was taken last."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def read_weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model/model.safetensors")


def assert_same_run(folder: Path, reference: Path) -> None:
    assert read_losses(folder) == read_losses(reference)
    ours, theirs = read_weights(folder), read_weights(reference)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (OSError, UnicodeDecodeError):
        return ""

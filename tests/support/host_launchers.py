"""DeepSpeed's launcher on a simulated host, started over ssh as DeepSpeed's own runner does."""

import base64
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simulated_hosts import SimulatedHosts

ROOT = Path(__file__).resolve().parents[2]


def start_launcher(
    hosts: SimulatedHosts,
    names: Sequence[str],
    node: int,
    words: Sequence[Any],
    output: Path,
    *,
    slots: int = 1,
    port: int = 29_500,
    **environ: str,
) -> subprocess.Popen[bytes]:
    """Start the ranks of one host.

    Args:
        hosts: Simulated.
        names: Those that take part, in the order of their ranks, which meet on the first one.
        node: Which of them this is, from 0.
        words: Options of the launcher, a program, and its arguments.
        output: Where its terminal goes.
        slots: Ranks on each host.
        port: Where the ranks meet.
        environ: More variables of the ranks.
    """
    table = json.dumps({name: list(range(slots)) for name in names})
    environ = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "GLOO_SOCKET_IFNAME": "eth0",
        **environ,
    }
    command = ["env", *(f"{key}={value}" for key, value in environ.items())]
    command += [sys.executable, "-u", "-m", "deepspeed.launcher.launch"]
    command += [f"--world_info={base64.urlsafe_b64encode(table.encode()).decode()}"]
    command += [f"--node_rank={node}", f"--master_addr={names[0]}", f"--master_port={port}"]
    line = f"cd {shlex.quote(str(ROOT))} && exec {shlex.join([*command, *map(str, words)])}"
    ssh = ["sh", "-c", hosts.write_ssh(), "ssh", "-o", "BatchMode=yes", "--", names[node], line]
    with output.open("wb") as file:
        return subprocess.Popen(
            ssh, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )

"""Starts a benchmark's own file once more, on several ranks of the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def launch(way: str, ranks: int, command: list[Any], parent: Path) -> dict[str, Any]:
    """Run a script under the launcher; return what its rank 0 wrote into `--result`.

    Args:
        way: What the script shall do there, as its `--way`.
        ranks: Processes, of one thread each.
        command: The script and its other words.
        parent: A folder for the result.
    """
    result = parent / "result.json"
    words = ["deepspeed", "--num_gpus", ranks, *command, "--way", way, "--result", result]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DS_ACCELERATOR": "cpu",
        "LOCAL_SIZE": str(ranks),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [str(word) for word in words], env=environment, capture_output=True, text=True
    )
    if done.returncode or not result.is_file():
        raise SystemExit(f"{way} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(result.read_text())
    result.unlink()
    return found

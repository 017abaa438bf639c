"""Ways to start a run in one process, and to give it too little of something."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def words_for(shared: Path, folder: Path, **changes: Any) -> list[str]:
    """The words of `bigft train` for a tiny model that would go on for hours."""
    settings = {
        "config": ROOT / "ds_configs/zero3.json",
        "model": shared / "model",
        "data": shared / "chat.jsonl",
        "data.loading.cache_dir": shared / "cache",
        "data.eval_fraction": 0,
        "max_length": 64,
        "max_steps": 100_000,
        "output_dir": folder,
        **changes,
    }
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def environment(**changes: str) -> dict[str, str]:
    tools = str(Path(sys.executable).parent)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **changes}


def start(words: Sequence[str], *before: str, **changes: str) -> "subprocess.Popen[str]":
    """`bigft train` in one process, its words in a pipe; `before` is what starts it."""
    return subprocess.Popen(
        [*before, sys.executable, "-m", "bigft", "train", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**changes),
        cwd=ROOT,
        start_new_session=True,
    )


def last_words(said: str) -> list[str]:
    """Lines that bigft begins with its name."""
    return [line for line in said.splitlines() if line.startswith("bigft")]

"""Settings of small runs, and what their `metrics.jsonl` says."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def small_settings(shared: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a run of seconds on the model and the data of the shared folder."""
    return {
        "model": shared / "model",
        "data": shared / "chat.jsonl",
        "max_length": 64,
        "learning_rate": 1e-3,
        "data.loading.cache_dir": shared / "cache",
        "data.eval_fraction": 0.1,
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        **changes,
    }


def ds_config(name: str) -> str:
    """Name the file of a DeepSpeed configuration that bigft comes with."""
    return str(ROOT / f"ds_configs/{name}.json")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read every row of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_steps(folder: Path) -> list[dict[str, Any]]:
    """Read the rows about steps, without those about evaluations."""
    return [row for row in read_metrics(folder) if "loss" in row]


def read_steps_so_far(folder: Path) -> list[dict[str, Any]]:
    """The same of a run that goes on: it may not have begun, or be in the middle of a line."""
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [row for row in rows if "loss" in row]


def read_losses(folder: Path) -> list[float]:
    """Read the loss of every step."""
    return [row["loss"] for row in read_steps(folder)]

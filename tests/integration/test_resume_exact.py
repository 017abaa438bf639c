"""A resumed run equals the uninterrupted one bit for bit: losses, norms, weights and states."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from resume_runs import digest_state, read_rows

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.distributed

CONFIGS = ("zero1", "zero2", "zero2_offload", "zero3", "zero3_offload", "zero3_nvme")
STEPS, STOP = 6, 3


def _settings(shared: Path, tmp: Path, config: str, **changes: Any) -> tuple[dict[str, Any], str]:
    settings = {
        "model": shared / "model",
        "data": shared / "chat.jsonl",
        "max_length": 64,
        "learning_rate": 1e-3,
        "data.loading.cache_dir": shared / "cache",
        "data.eval_fraction": 0,
        "per_device_train_batch_size": 2,
        "max_steps": STEPS,
        "save_steps": STOP,
        "checkpoint.keep_last": 9,
        "ds.bf16.enabled": "false",
        **changes,
    }
    name = config
    if config == "zero1":
        settings["ds.zero_optimization.stage"] = 1
        name = "zero2"
    if config == "zero3_nvme":
        for part in ("offload_param", "offload_optimizer"):
            settings[f"ds.zero_optimization.{part}.nvme_path"] = tmp / "nvme"
    return settings, str(ROOT / f"ds_configs/{name}.json")


def check_equal(pool: Any, settings: dict[str, Any], config: str, tmp: Path, stop: int) -> None:
    """Train at one go, then from the checkpoint of step `stop`, and compare everything."""
    whole, half = tmp / "whole", tmp / "half"
    pool.run("resume_runs:train", settings, str(whole), config)
    name = f"checkpoints/step_{stop:08d}"
    shutil.copytree(whole / name, half / name)
    said = pool.run("resume_runs:train", settings, str(half), config)[0]
    assert f"resumed from step_{stop:08d}" in said
    assert read_rows(half, stop + 1) == read_rows(whole, stop + 1)
    last = f"checkpoints/step_{settings['max_steps']:08d}"
    assert digest_state(half / last) == digest_state(whole / last)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_resume_is_exact(two_ranks, shared_folder, tmp_path, config, dtype):
    changes = {"ds.bf16.enabled": str(dtype == "bf16").lower(), "gradient_accumulation_steps": 2}
    settings, ds = _settings(shared_folder, tmp_path, config, **changes)
    check_equal(two_ranks, settings, ds, tmp_path, STOP)


@pytest.mark.parametrize("config", ["zero2", "zero3", "zero3_offload"])
def test_8bit_resume_is_exact(two_ranks, shared_folder, tmp_path, config):
    settings, ds = _settings(shared_folder, tmp_path, config, optim="adamw_8bit")
    check_equal(two_ranks, settings, ds, tmp_path, STOP)

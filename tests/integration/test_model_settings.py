"""What a user changes of the model itself: its config, noise, and what is not trained."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_runs import ds_config, read_losses, read_metrics, small_settings

pytestmark = pytest.mark.distributed

DROPOUT = "model.config.attention_dropout"


def _run(pool: Any, settings: dict[str, Any], folder: Path, config: str) -> str:
    found = pool.run("runs:train", settings, str(folder), ds_config(config))
    return str(found[0]["said"])


def _read_evaluations(folder: Path) -> list[float]:
    return [row["eval_loss"] for row in read_metrics(folder) if "eval_loss" in row]


# --- Values of the config ---


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_dropout_is_active_in_training_alone_and_exported(
    one_rank, shared_folder, tmp_path, checkpointing
):
    settings = small_settings(shared_folder, activation_checkpointing=checkpointing)
    _run(one_rank, settings, tmp_path / "plain", "zero3")
    for name in ("one", "two"):
        _run(one_rank, {**settings, DROPOUT: 0.5}, tmp_path / name, "zero3")
    plain, one, two = (read_losses(tmp_path / name) for name in ("plain", "one", "two"))
    assert abs(one[0] - plain[0]) > 1e-4
    assert one == two
    # Nothing is dropped while the model is scored: before the first step both are one model.
    evaluations = [_read_evaluations(tmp_path / name) for name in ("plain", "one")]
    assert evaluations[0][0] == evaluations[1][0]
    config = json.loads((tmp_path / "one/model/config.json").read_text())
    assert config["attention_dropout"] == 0.5

"""What a user changes of the model itself: its config, noise, and what is not trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from resume_runs import STEPS, STOP, check_equal, copy_checkpoint, make_settings
from safetensors.torch import load_file
from small_runs import ds_config, read_losses, read_metrics, small_settings

from bigft.checkpoint.consolidate import consolidate

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


# --- NEFTune ---


@pytest.mark.parametrize("packing", ["none", "best_fit"])
def test_noise_is_in_training_alone(two_ranks, shared_folder, tmp_path, packing):
    settings = small_settings(shared_folder, packing=packing)
    _run(two_ranks, settings, tmp_path / "plain", "zero3_offload")
    for name in ("one", "two"):
        noisy = {**settings, "model.neftune_alpha": 5}
        said = _run(two_ranks, noisy, tmp_path / name, "zero3_offload")
        assert "note: NEFTune: noise of alpha 5 on the embeddings" in said
    plain, one, two = (read_losses(tmp_path / name) for name in ("plain", "one", "two"))
    assert abs(one[0] - plain[0]) > 1e-4
    assert one == two
    evaluations = [_read_evaluations(tmp_path / name) for name in ("plain", "one")]
    assert evaluations[0][0] == evaluations[1][0]
    assert evaluations[0][1] != evaluations[1][1]
    ours, theirs = (load_file(tmp_path / f"{n}/model/model.safetensors") for n in ("one", "plain"))
    assert ours.keys() == theirs.keys()
    assert {name: t.shape for name, t in ours.items()} == {n: t.shape for n, t in theirs.items()}


@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_a_resumed_run_draws_the_same_noise(two_ranks, shared_folder, tmp_path, config):
    changes = {"model.neftune_alpha": 5, "gradient_accumulation_steps": 2, DROPOUT: 0.1}
    settings, ds = make_settings(shared_folder, tmp_path, config, **changes)
    check_equal(two_ranks, settings, ds, tmp_path, STOP)


# --- Learning rates by depth ---


@pytest.mark.parametrize(
    ("place", "optim"),
    [("zero2", "adamw"), ("zero3", "adamw"), ("zero2_offload", "adamw"),
     ("zero3_offload", "adamw_8bit"), ("zero3_nvme", "adamw")],
)  # fmt: skip
def test_lower_layers_learn_more_slowly(two_ranks, shared_folder, tmp_path, place, optim):
    """Adam's first step moves each weight by its learning rate, whatever the gradient is."""
    changes = {
        "model.layer_decay": 0.5,
        "optim": optim,
        "optim.weight_decay": 0,
        "optim.adam_epsilon": 1e-12,
        "save_steps": 1,
        "max_steps": 4,
        "learning_rate": 1e-3,
    }
    settings, ds = make_settings(shared_folder, tmp_path, place, **changes)
    check_equal(two_ranks, settings, ds, tmp_path, 2)
    consolidate(tmp_path / "whole/checkpoints/step_00000001", tmp_path / "export", dtype="auto")
    folders = shared_folder / "model", tmp_path / "export"
    before, after = (load_file(folder / "model.safetensors") for folder in folders)
    depths = {"embed_tokens": 0, "layers.0.": 1, "layers.1.": 2, "model.norm": 3, "lm_head": 3}
    for name, weight in before.items():
        depth = next(depth for part, depth in depths.items() if part in name)
        moved = float((after[name] - weight).abs().max())
        assert moved == pytest.approx(1e-3 * 0.5 ** (3 - depth), rel=2e-3), name
    rows = [row["learning_rate"] for row in read_metrics(tmp_path / "whole")]
    assert rows == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


# --- Parameters that are not trained ---

FREEZE = r"^model.embed_tokens,layers\.0\.,norm"
PLACES = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "zero3_nvme")


def _check_frozen(original: Path, exported: Path, dtype: torch.dtype) -> None:
    before, after = (load_file(path / "model.safetensors") for path in (original, exported))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        is_frozen = "embed_tokens" in name or "layers.0." in name or "norm" in name
        assert after[name].dtype == dtype
        assert after[name].equal(weight.to(dtype)) is is_frozen, name


CASES = [
    *((place, "fp32", "adamw") for place in PLACES),
    *((place, "bf16", "adamw") for place in PLACES),
    *((place, "bf16", "adamw_8bit") for place in PLACES[3:]),
]
ALWAYS = [
    ("zero0", "fp32", "adamw"),
    ("zero2", "bf16", "adamw"),
    ("zero3", "fp32", "adamw"),
    ("zero2_offload", "bf16", "adamw_8bit"),
    ("zero3_offload", "bf16", "adamw_8bit"),
    ("zero3_nvme", "bf16", "adamw"),
]


@pytest.mark.parametrize(
    ("place", "dtype", "optim"),
    [pytest.param(*c, marks=[] if c in ALWAYS else [pytest.mark.nightly]) for c in CASES],
)
def test_frozen_weights_stay_bit_for_bit_and_resume_is_exact(
    two_ranks, shared_folder, tmp_path, place, dtype, optim
):
    changes = {
        "model.freeze": FREEZE,
        "optim": optim,
        "ds.bf16.enabled": str(dtype == "bf16").lower(),
        "gradient_accumulation_steps": 2,
        "checkpoint.export_dtype": "auto",
    }
    name = "zero2" if place == "zero0" else place
    settings, ds = make_settings(shared_folder, tmp_path, name, **changes)
    if place == "zero0":
        settings["ds.zero_optimization.stage"] = 0
    check_equal(two_ranks, settings, ds, tmp_path, STOP)
    export = tmp_path / "export"
    consolidate(tmp_path / f"whole/checkpoints/step_{STEPS:08d}", export, dtype="auto")
    number_format = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    _check_frozen(shared_folder / "model", export, number_format)


def test_frozen_parameters_are_bound_to_the_checkpoint(two_ranks, shared_folder, tmp_path):
    settings = small_settings(shared_folder, max_steps=2, **{"model.freeze": "embed_tokens"})
    said = _run(two_ranks, settings, tmp_path / "run", "zero3_offload")
    assert "note: frozen by --model.freeze embed_tokens: 1 of 21 tensors, " in said
    settings |= {"model.freeze": "layers", "max_steps": 3}
    found = two_ranks.run(
        "runs:try_train", settings, str(tmp_path / "run"), ds_config("zero3_offload")
    )
    kind, text, code = found[0]
    assert (kind, code) == ("CheckpointError", 5)
    assert "parameters that are not trained: ['embed_tokens'] in the checkpoint" in text


def test_a_frozen_run_moves_to_another_placement(two_ranks, one_rank, shared_folder, tmp_path):
    """Frozen weights are found wherever another stage and number of ranks wants them."""
    freeze = {"model.freeze": FREEZE}
    one = make_settings(shared_folder, tmp_path, "zero3_offload", **freeze)
    other = make_settings(shared_folder, tmp_path, "zero2", **freeze)
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    two_ranks.run("resume_runs:train", one[0], str(whole), one[1])
    copy_checkpoint(whole, moved, STOP)
    one_rank.run("resume_runs:train", other[0], str(moved), other[1])
    for folder in (whole, moved):
        consolidate(folder / f"checkpoints/step_{STEPS:08d}", folder / "export", dtype="auto")
        _check_frozen(shared_folder / "model", folder / "export", torch.float32)
    ours, theirs = (load_file(f / "export/model.safetensors") for f in (moved, whole))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)

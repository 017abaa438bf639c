"""Runs that end early, and the best checkpoint, on real engines."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from small_runs import ds_config, read_metrics, read_steps, small_settings

pytestmark = pytest.mark.distributed

STEPS = 24
# The learning rate rises until the model unlearns: the best evaluation lies in the middle.
RISING = {
    "max_steps": STEPS,
    "learning_rate": 0.5,
    "optim.lr_scheduler_type": "constant_with_warmup",
    "optim.warmup_steps": STEPS,
    "optim.max_grad_norm": 0,
    "eval_steps": 2,
    "save_steps": 2,
}


def _settings(shared: Path, **changes: Any) -> dict[str, Any]:
    return small_settings(shared, **{**RISING, **changes})


def _read_evaluations(folder: Path) -> dict[int, float]:
    return {row["step"]: row["eval_loss"] for row in read_metrics(folder) if "eval_loss" in row}


def _find_best(folder: Path) -> int:
    found = {step: loss for step, loss in _read_evaluations(folder).items() if step}
    return min(found, key=lambda step: (found[step], step))


def _list_checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("step_*"))


def _check_export(folder: Path, step: int, tmp_path: Path) -> None:
    """The exported model is the one of this step's checkpoint."""
    from bigft.checkpoint.consolidate import consolidate

    consolidate(folder / f"checkpoints/step_{step:08d}", tmp_path / "expected", dtype="auto")
    expected = load_file(tmp_path / "expected/model.safetensors")
    found = load_file(folder / "model/model.safetensors")
    assert expected.keys() == found.keys()
    assert all(found[name].equal(expected[name]) for name in found)


@pytest.mark.parametrize(
    ("ranks", "config", "write"),
    [("one_rank", "zero2", "background"), ("two_ranks", "zero3", "foreground")],
)
def test_a_run_ends_early_and_the_best_model_is_exported(
    request, shared_folder, tmp_path, ranks, config, write
):
    pool = request.getfixturevalue(ranks)
    settings = _settings(
        shared_folder,
        **{"trainer.early_stopping": "eval_loss:3", "checkpoint.write": write, "logging_steps": 5},
    )
    folder = tmp_path / "whole"
    found = pool.run("runs:train", settings, str(folder), ds_config(config))[0]
    evaluations = _read_evaluations(folder)
    last, best = max(evaluations), _find_best(folder)
    assert 0 < best == last - 6, evaluations
    assert last < STEPS
    # Every step is in a row of the metrics, though the run ended between two of them.
    assert read_steps(folder)[-1]["step"] == last
    said = found["said"]
    assert "without a better eval_loss, smaller is better" in said
    assert f"early stopping at step {last}" in said
    assert f"the best checkpoint is exported: step {best}, eval_loss" in said
    # The newest two and the best, which rotation would have taken.
    names = [f"step_{step:08d}" for step in (best, last - 2, last)]
    assert _list_checkpoints(folder) == names
    assert (folder / "checkpoints/best").read_text() == f"{names[0]}\n"
    assert (folder / "checkpoints/latest").read_text() == f"{names[-1]}\n"
    assert found["checkpoint"] == str(folder / "checkpoints" / names[0])
    _check_export(folder, best, tmp_path)
    # The same command again takes no step and gives the same model.
    again = pool.run("runs:train", settings, str(folder), ds_config(config))[0]
    assert again["checkpoint"] == found["checkpoint"]
    assert max(_read_evaluations(folder)) == last
    _check_export_of_parts(pool, settings, config, folder, tmp_path / "parts", cut=best + 3)


def _check_export_of_parts(
    pool: Any, settings: dict[str, Any], config: str, whole: Path, folder: Path, cut: int
) -> None:
    """A run in two parts ends where the whole one ended, with the same model."""
    # The first part ends between evaluations: its own last one must not count for the second.
    first = {**settings, "max_steps": STEPS, "trainer.early_stopping": "eval_loss:3"}
    pool.run("runs:train_until", first, str(folder), ds_config(config), cut)
    pool.run("runs:train", settings, str(folder), ds_config(config))
    assert _read_evaluations(folder) == _read_evaluations(whole)
    assert _list_checkpoints(folder)[-2:] == _list_checkpoints(whole)[-2:]
    ours, theirs = (load_file(path / "model/model.safetensors") for path in (folder, whole))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    manifests = [
        json.loads(
            (path / "checkpoints" / _list_checkpoints(whole)[-1] / "manifest.json").read_text()
        )
        for path in (folder, whole)
    ]
    assert manifests[0]["state"]["progress"] == manifests[1]["state"]["progress"]
    assert manifests[0]["best"] == manifests[1]["best"]


def test_the_best_of_a_run_that_goes_to_its_end(one_rank, shared_folder, tmp_path):
    settings = _settings(
        shared_folder, max_steps=STEPS, **{"checkpoint.best": "token_accuracy", "save_steps": 4}
    )
    folder = tmp_path / "run"
    found = one_rank.run("runs:train", settings, str(folder), ds_config("zero3"))[0]
    rows = [row for row in read_metrics(folder) if "eval_loss" in row]
    scores = {row["step"]: row["eval_token_accuracy"] for row in rows}
    saved = {step: value for step, value in scores.items() if step and step % 4 == 0}
    best = max(saved, key=lambda step: (saved[step], -step))
    assert found["checkpoint"].endswith(f"step_{best:08d}")
    assert max(scores) == STEPS
    _check_export(folder, best, tmp_path)


def test_a_metric_that_is_not_there_is_an_error_before_the_first_step(
    two_ranks, shared_folder, tmp_path
):
    for name in ("trainer.early_stopping", "checkpoint.best"):
        value = {"trainer.early_stopping": "f1_macro:3", "checkpoint.best": "f1_macro"}[name]
        settings = _settings(shared_folder, **{name: value})
        results = two_ranks.run(
            "runs:try_train", settings, str(tmp_path / name), ds_config("zero3")
        )
        kind, text, code = results[0]
        assert (kind, code) == ("ConfigError", 2)
        assert f"--{name} {value}" in text
        assert "there are loss, perplexity, token_accuracy" in text
        assert all(row["step"] == 0 for row in read_metrics(tmp_path / name))

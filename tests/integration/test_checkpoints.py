"""Saving, rotating and resuming on two real ranks, also when something goes wrong."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from making import make_messages
from safetensors.torch import load_file
from small_runs import ds_config, read_steps, small_settings

pytestmark = pytest.mark.distributed

ZERO3 = ds_config("zero3")
OFFLOAD = ds_config("zero3_offload")


def _settings(shared: Path, **changes: Any) -> dict[str, Any]:
    return small_settings(shared, **{"ds.bf16.enabled": "false", **changes})


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


@pytest.fixture(scope="module")
def finished(two_ranks, shared_folder, tmp_path_factory) -> Path:
    """A run of 4 steps that saved after steps 2 and 4; tests copy it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    two_ranks.run("runs:train", _settings(shared_folder, save_steps=2), str(folder), ZERO3)
    return folder


def test_rotation_keeps_the_last_ones(two_ranks, shared_folder, tmp_path):
    settings = _settings(shared_folder, save_steps=1, max_steps=5) | {"checkpoint.keep_last": 3}
    two_ranks.run("runs:train", settings, str(tmp_path / "run"), ZERO3)
    checkpoints = tmp_path / "run/checkpoints"
    assert _names(checkpoints) == ["latest", "step_00000003", "step_00000004", "step_00000005"]
    assert (checkpoints / "latest").read_text() == "step_00000005\n"


def test_failed_save_ends_all_ranks_alike_and_spoils_nothing(two_ranks, shared_folder, tmp_path):
    settings = _settings(shared_folder, save_steps=2)
    run = str(tmp_path / "run")
    failed = two_ranks.run("checkpoint_runs:fail_in_assets", settings, run, ZERO3, 4)
    assert failed[0] == failed[1]
    kind, text, code = failed[0]
    assert (kind, code) == ("CheckpointError", 5)
    assert "No space left on device" in text
    assert "Older checkpoints are untouched" in text
    assert _names(tmp_path / "run/checkpoints") == ["latest", "step_00000002"]


@pytest.mark.parametrize("rank", [0, 1])
def test_shards_that_one_rank_cannot_write_end_all_ranks(two_ranks, shared_folder, tmp_path, rank):
    settings = _settings(shared_folder, save_steps=2)
    run = str(tmp_path / "run")
    failed = two_ranks.run("checkpoint_runs:fail_in_state", settings, run, ZERO3, rank, timeout=60)
    for kind, text, code in failed:
        assert (kind, code) == ("CheckpointError", 5)
        assert "was not saved" in text
        assert f"rank {rank}: " in text
    assert not list((tmp_path / "run/checkpoints").glob("*step_*"))


def test_leftovers_of_a_killed_save_do_not_count(two_ranks, shared_folder, tmp_path, finished):
    run = shutil.copytree(finished, tmp_path / "run")
    checkpoints = run / "checkpoints"
    (checkpoints / "step_00000004").rename(checkpoints / ".tmp-step_00000004-dead-2")
    settings = _settings(shared_folder, save_steps=2)
    said = two_ranks.run("runs:train", settings, str(run), ZERO3)[0]["said"]
    assert "resumed from step_00000002, 2 steps to go" in said
    assert _names(checkpoints) == ["latest", "step_00000002", "step_00000004"]


def test_a_damaged_checkpoint_is_set_aside(two_ranks, shared_folder, tmp_path, finished):
    run = shutil.copytree(finished, tmp_path / "run")
    checkpoints = run / "checkpoints"
    shard = checkpoints / "step_00000004/state/rank_00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    settings = _settings(shared_folder, save_steps=2)
    said = two_ranks.run("runs:train", settings, str(run), ZERO3)[0]["said"]
    assert "rank_00001.safetensors" in said
    assert "It is kept as damaged-step_00000004" in said
    assert "resumed from step_00000002, 2 steps to go" in said
    assert (checkpoints / "damaged-step_00000004/manifest.json").is_file()
    settings["resume"] = checkpoints / "damaged-step_00000004"
    failed = two_ranks.run("runs:try_train", settings, str(tmp_path / "other"), ZERO3)
    for kind, text, code in failed:
        assert (kind, code) == ("CheckpointError", 5)
        assert "rank_00001.safetensors" in text


@pytest.mark.parametrize("config", ["zero3_offload", "zero3_nvme"])
def test_background_saves_hold_the_state_of_their_step(
    two_ranks, shared_folder, tmp_path, finished, config
):
    from resume_runs import digest_state

    ds = ds_config(config)
    settings = _settings(shared_folder, save_steps=1, max_steps=3)
    settings["checkpoint.keep_last"] = 9
    if config == "zero3_nvme":
        for part in ("offload_param", "offload_optimizer"):
            settings[f"ds.zero_optimization.{part}.nvme_path"] = tmp_path / "nvme"
    two_ranks.run("runs:train", settings, str(tmp_path / "one"), ds)
    settings["checkpoint.write"] = "background"
    two_ranks.run("runs:train", settings, str(tmp_path / "other"), ds)
    for step in (1, 2, 3):
        name = f"checkpoints/step_{step:08d}"
        assert digest_state(tmp_path / "one" / name) == digest_state(tmp_path / "other" / name)


def test_another_run_cannot_continue_and_hears_every_difference(
    one_rank, shared_folder, tmp_path, finished
):
    make_messages(tmp_path / "other.jsonl", seed=7)
    run = shutil.copytree(finished, tmp_path / "run")
    recorded = (run / "resolved/run.yaml").read_text()
    settings = _settings(
        shared_folder,
        data=tmp_path / "other.jsonl",
        optim="adamw_8bit",
        seed=3,
    )
    kind, text, code = one_rank.run("runs:try_train", settings, str(run), ZERO3)[0]
    assert (kind, code) == ("CheckpointError", 5)
    for difference in (
        "data, tokenizer",
        "optimizer: 'adamw' in the checkpoint, 'adamw_8bit' now",
        "seed: 42",
        f"data.train was '{shared_folder}/chat.jsonl', is '{tmp_path}/other.jsonl'",
    ):
        assert difference in text
    assert "--resume never" in text
    # The repair names these settings: a refused start must not replace them with its own.
    assert (run / "resolved/run.yaml").read_text() == recorded


def test_resume_of_a_finished_run_only_exports(two_ranks, shared_folder, tmp_path, finished):
    run = shutil.copytree(finished, tmp_path / "run")
    before = load_file(run / "model/model.safetensors")
    shutil.rmtree(run / "model")
    (run / "metrics.jsonl").unlink()
    settings = _settings(shared_folder, save_steps=2)
    result = two_ranks.run("runs:train", settings, str(run), ZERO3)[0]
    assert "0 steps to go" in result["said"]
    assert result["checkpoint"].endswith("step_00000004")
    assert (run / "metrics.jsonl").read_text() == ""
    after = load_file(run / "model/model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_resume_from_a_path_into_a_new_folder(two_ranks, shared_folder, tmp_path, finished):
    settings = _settings(shared_folder, resume=finished / "checkpoints/step_00000002")
    two_ranks.run("runs:train", settings, str(tmp_path / "run"), ZERO3)
    rows, whole = read_steps(tmp_path / "run"), read_steps(finished)
    assert [row["step"] for row in rows] == [3, 4]
    for name in ("loss", "learning_rate", "grad_norm"):
        found, wanted = ([row[name] for row in each[-2:]] for each in (rows, whole))
        np.testing.assert_allclose(found, wanted, rtol=2e-6)


def test_path_without_a_checkpoint_is_refused(two_ranks, shared_folder, tmp_path):
    settings = _settings(shared_folder, resume=tmp_path)
    kind, text, code = two_ranks.run("runs:try_train", settings, str(tmp_path / "r"), ZERO3)[1]
    assert (kind, code) == ("CheckpointError", 5)
    assert f"--resume {tmp_path}" in text


def test_new_start_in_an_old_folder_is_what_counts(two_ranks, shared_folder, tmp_path, finished):
    """`--resume never` with fewer steps: later checkpoints of the old course must not win."""
    run = shutil.copytree(finished, tmp_path / "run")
    settings = _settings(shared_folder, resume="never", max_steps=2, learning_rate=1e-2)
    settings["checkpoint.keep_last"] = 1
    result = two_ranks.run("runs:train", settings, str(run), ZERO3)[0]
    assert result["checkpoint"].endswith("step_00000002")
    assert "warning: --resume never: step_00000004, step_00000002 in" in result["said"]
    old = load_file(finished / "model/model.safetensors")
    assert not torch.equal(
        load_file(run / "model/model.safetensors")["model.norm.weight"], old["model.norm.weight"]
    )
    assert _names(run / "checkpoints") == ["latest", "step_00000002"]
    # Killed now, the next run goes on from the new course.
    settings |= {"resume": "auto", "max_steps": 3}
    said = two_ranks.run("runs:train", settings, str(run), ZERO3)[0]["said"]
    assert "resumed from step_00000002, 1 steps to go" in said


@pytest.mark.parametrize("config", ["zero3", "zero3_offload", "zero2"])
def test_8bit_states_survive_a_resume(two_ranks, shared_folder, tmp_path, config):
    ds = ds_config(config)
    settings = _settings(shared_folder, optim="adamw_8bit", save_steps=2)
    two_ranks.run("runs:train", settings, str(tmp_path / "whole"), ds)
    settings |= {"resume": tmp_path / "whole/checkpoints/step_00000002"}
    said = two_ranks.run("runs:train", settings, str(tmp_path / "half"), ds)[0]["said"]
    assert "were expected" not in said
    whole, half = read_steps(tmp_path / "whole"), read_steps(tmp_path / "half")
    assert [row["step"] for row in half] == [3, 4]
    np.testing.assert_allclose(
        [row["loss"] for row in half], [row["loss"] for row in whole[2:]], rtol=1e-6
    )
    files = (tmp_path / f"{name}/model/model.safetensors" for name in ("whole", "half"))
    one, other = map(load_file, files)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("config", ["zero3", "zero3_offload", "zero2", "zero3_nvme"])
def test_run_that_blows_up_stops_with_finite_weights(two_ranks, shared_folder, tmp_path, config):
    from bigft.checkpoint.consolidate import consolidate

    settings = _settings(
        shared_folder, learning_rate=1e30, save_steps=1, max_steps=20, **{"ds.gradient_clipping": 0}
    )
    settings["trainer.max_skipped_in_a_row"] = 3
    ds = ds_config(config)
    for kind, text, code in two_ranks.run("runs:try_train", settings, str(tmp_path / "run"), ds):
        assert (kind, code) == ("TrainingError", 7)
        assert "3 times in a row" in text
    rows = read_steps(tmp_path / "run")
    assert rows[-1]["skipped_steps"] == 3
    assert rows[-1]["grad_norm"] is None
    assert len(rows) < 20
    newest = tmp_path / f"run/checkpoints/step_{rows[-1]['step'] - 1:08d}"
    # The export refuses weights that are not finite.
    consolidate(newest, tmp_path / "model", dtype="float32", max_shard_bytes=10**9)
    weights = load_file(tmp_path / "model/model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())
    assert max(float(value.abs().max()) for value in weights.values()) > 1e20

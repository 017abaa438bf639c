"""hpZ (`zero_hpz_partition_size`) on four ranks in groups of two, as on two hosts.

Weights come from the group and not from all ranks, and are the same numbers: so are all losses.
Checkpoints are those of a run without it.
"""

import shutil

import pytest
from ranks import RankPool
from small_runs import ds_config, read_losses, small_settings

pytestmark = [pytest.mark.distributed, pytest.mark.nightly]

GROUP = "ds.zero_optimization.zero_hpz_partition_size"


def _train(settings, folder, config="zero3", group=2):
    # DeepSpeed makes groups once per process.
    pool = RankPool(4)
    try:
        given = {**settings, GROUP: group}
        return pool.run("runs:train", given, str(folder), ds_config(config))[0]["said"]
    finally:
        pool.close()


@pytest.mark.parametrize("config", ["zero3", "zero3_offload"])
def test_losses_and_resumed_losses_are_those_of_a_run_without_it(shared_folder, tmp_path, config):
    settings = small_settings(
        shared_folder, max_steps=6, save_steps=3, gradient_accumulation_steps=2
    )
    for group in (1, 2):
        _train(settings, tmp_path / f"run{group}", config, group)
    whole = read_losses(tmp_path / "run1")
    assert len(whole) == 6
    assert read_losses(tmp_path / "run2") == whole
    # Each goes on from the other's checkpoint.
    for group in (1, 2):
        folder, other = tmp_path / f"on{group}", tmp_path / f"run{3 - group}"
        taken = folder / "checkpoints/step_00000003"
        shutil.copytree(other / "checkpoints/step_00000003", taken)
        said = _train(settings, folder, config, group)
        assert "resumed from step_00000003" in said
        assert read_losses(folder) == whole[3:]


def test_an_average_that_is_evaluated_leaves_no_trace(shared_folder, tmp_path):
    """Evaluations fill the second shards with other weights than the next step trains."""
    changes = {"trainer.ema": 0.5, "eval_steps": 2, "max_steps": 6}
    settings = small_settings(shared_folder, **changes)
    for group in (1, 2):
        _train(settings, tmp_path / f"run{group}", "zero3", group)
    assert read_losses(tmp_path / "run2") == read_losses(tmp_path / "run1")


def test_a_model_that_grows_is_partitioned_again(shared_folder, tmp_path):
    from making import make_model

    model = make_model(tmp_path / "small", vocab_size=256)
    settings = small_settings(shared_folder, model=model, max_steps=3)
    for group in (1, 2):
        said = _train(settings, tmp_path / f"run{group}", "zero3", group)
        assert "vocabulary grown from 256" in said
    assert read_losses(tmp_path / "run2") == read_losses(tmp_path / "run1")

"""The optimizer in files on NVMe, in whole runs: the same numbers as in host memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import RankFailedError
from resume_runs import check_equal, digest_state, make_settings, read_full, read_rows

pytestmark = pytest.mark.distributed


def _settings(shared: Path, model: Path, tmp: Path, config: str, **changes: Any) -> Any:
    """Weights in files of DeepSpeed's and in memory, in several sub-groups."""
    changes = {"ds.zero_optimization.sub_group_size": 1_000_000, "model": model, **changes}
    return make_settings(shared, tmp, config, **changes)


@pytest.mark.parametrize("optim", ["adamw_8bit", "adamw"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_run_from_nvme_is_that_from_host_memory(
    two_ranks, shared_folder, wide_model, tmp_path, optim, dtype
):
    changes = {"optim": optim, "ds.bf16.enabled": str(dtype == "bf16").lower()}
    said, rows, states = {}, {}, {}
    for config in ("zero3_nvme", "zero3_offload"):
        settings, path = _settings(shared_folder, wide_model, tmp_path, config, **changes)
        run = tmp_path / config
        said[config] = two_ranks.run("resume_runs:train", settings, str(run), path)[0]
        rows[config] = read_rows(run, 1)
        states[config] = read_full(run / "checkpoints/step_00000006")
    assert all("optimizer HostAdamW" in text for text in said.values())
    assert rows["zero3_nvme"] == rows["zero3_offload"]
    one, other = states.values()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("bits", [32, 24])
def test_it_goes_on_exactly(two_ranks, shared_folder, wide_model, tmp_path, bits):
    changes = {"optim": "adamw_8bit", "ds.bf16.enabled": "true", "optim.master_bits": bits}
    settings, config = _settings(shared_folder, wide_model, tmp_path, "zero3_nvme", **changes)
    check_equal(two_ranks, settings, config, tmp_path, 3)


def test_the_last_checkpoint_can_use_up_the_swap_files(
    two_ranks, shared_folder, wide_model, tmp_path
):
    """It is the same one, and the files' space is free before it is complete."""
    changes = {"optim": "adamw_8bit", "ds.bf16.enabled": "true", "checkpoint.save_steps": 0}
    settings, config = _settings(shared_folder, wide_model, tmp_path, "zero3_nvme", **changes)
    normal, tight = tmp_path / "normal", tmp_path / "tight"
    two_ranks.run("resume_runs:train", settings, str(normal), config)
    seen = two_ranks.run("resume_runs:train_in_little_space", settings, str(tight), config)
    name = "checkpoints/step_00000006"
    assert digest_state(tight / name) == digest_state(normal / name)
    for said, blocks_before, blocks_after in seen:
        assert said == "" or "the last checkpoint uses them up" in said
        assert blocks_after < 0.7 * blocks_before


def test_checkpoints_in_between_need_room_beside_the_swap_files(
    two_ranks, shared_folder, wide_model, tmp_path
):
    changes = {"optim": "adamw_8bit", "ds.bf16.enabled": "true"}
    settings, config = _settings(shared_folder, wide_model, tmp_path, "zero3_nvme", **changes)
    with pytest.raises(RankFailedError, match="--save_steps 0"):
        two_ranks.run("resume_runs:train_in_little_space", settings, str(tmp_path / "r"), config)

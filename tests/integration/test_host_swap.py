"""The optimizer in files on NVMe, in whole runs: the same numbers as in host memory."""

import pytest
import torch
from resume_runs import check_equal, make_settings, read_full, read_rows

pytestmark = pytest.mark.distributed

SMALL_PIECES = {"ds.zero_optimization.sub_group_size": 100_000}


@pytest.mark.parametrize("optim", ["adamw_8bit", "adamw"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_run_from_nvme_is_that_from_host_memory(two_ranks, shared_folder, tmp_path, optim, dtype):
    changes = {"optim": optim, "ds.bf16.enabled": str(dtype == "bf16").lower()}
    said, rows, states = {}, {}, {}
    for config in ("zero3_nvme", "zero3_offload"):
        settings, path = make_settings(shared_folder, tmp_path, config, **changes)
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
def test_it_goes_on_exactly(two_ranks, shared_folder, tmp_path, bits):
    changes = {"optim": "adamw_8bit", "ds.bf16.enabled": "true", "optim.master_bits": bits}
    settings, config = make_settings(shared_folder, tmp_path, "zero3_nvme", **changes)
    check_equal(two_ranks, settings, config, tmp_path, 3)

"""Every kind of run resumes bit for bit: 48 configurations, and chains of interruptions."""

from typing import Any

import pytest
from resume_runs import check_equal, check_same, make_settings, read_rows

pytestmark = [pytest.mark.distributed, pytest.mark.nightly]

CONFIGS = ("zero1", "zero2", "zero2_offload", "zero3", "zero3_offload", "zero3_nvme")
VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "padded, one micro-batch": (1, {"data.packing": "none"}),
    "packed, accumulated": (4, {"gradient_accumulation_steps": 3}),
    "streamed": (2, {"data.loading.streaming": "true", "gradient_accumulation_steps": 2}),
    "background saves, other seed, several epochs": (
        5,
        {
            "checkpoint.write": "background",
            "seed": 7,
            "data.loading.num_workers": 0,
            "per_device_train_batch_size": 8,
            "optim.lr_scheduler_type": "linear",
        },
    ),
}
"""The step after which the run goes on, and what differs from the plain run."""


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("config", CONFIGS)
def test_resume_is_exact(two_ranks, shared_folder, tmp_path, config, dtype, variant):
    stop, changes = VARIANTS[variant]
    changes = {**changes, "ds.bf16.enabled": str(dtype == "bf16").lower(), "save_steps": 1}
    settings, ds = make_settings(shared_folder, tmp_path, config, **changes)
    if variant == "streamed":
        settings["eval_data"] = settings["data"]
    check_equal(two_ranks, settings, ds, tmp_path, stop)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ("zero3", {"ds.bf16.enabled": "true", "gradient_accumulation_steps": 2}),
        ("zero2_offload", {"optim": "adamw_8bit", "checkpoint.write": "background"}),
        ("zero3_nvme", {"gradient_accumulation_steps": 3, "data.packing": "none"}),
    ],
)
def test_ten_interruptions_change_nothing(two_ranks, shared_folder, tmp_path, config, changes):
    """Every run of the chain is asked to stop in its first step, now by one rank, now by the other.

    Only what the last one reports, and its checkpoint, are compared with a run at one go: all that
    the eleven runs have carried over is in them.
    """
    last = 11
    settings, ds = make_settings(shared_folder, tmp_path, config, max_steps=last, **changes)
    settings["save_steps"] = 0
    whole, chain = tmp_path / "whole", tmp_path / "chain"
    two_ranks.run("resume_runs:train", settings, str(whole), ds)
    for step in range(1, last):
        said = two_ranks.run("resume_runs:train_a_step", settings, str(chain), ds, step % 2)[0]
        assert f"at step {step} of {last}" in said, said
    assert "resumed from" in two_ranks.run("resume_runs:train", settings, str(chain), ds)[0]
    assert read_rows(chain, 1) == read_rows(whole, 1)
    check_same(whole, chain, 0, last)

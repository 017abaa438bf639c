"""The optimizer in host memory under stages 1 and 2: the same step, over parts cut anywhere."""

from typing import Any

import host_runs
import numpy as np
import pytest
import torch
from resume_runs import (
    STEPS,
    STOP,
    check_equal,
    copy_checkpoint,
    make_settings,
    read_full,
    read_rows,
)

pytestmark = pytest.mark.distributed

BF16 = {"ds.bf16.enabled": "true"}
LAST = f"checkpoints/step_{STEPS:08d}"
BITS = {"adamw": "8", "adamw_8bit": "2.0"}


@pytest.mark.parametrize("optim", ["adamw_8bit", "adamw"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("stage", [1, 2])
def test_losses_are_those_with_separate_fp32_weights(
    two_ranks, shared_folder, tmp_path, optim, accumulation, stage
):
    """Bit for bit, with gradients in bf16 and with their sums in fp32."""
    changes = {**BF16, "optim": optim, "gradient_accumulation_steps": accumulation}
    changes["ds.zero_optimization.stage"] = stage
    settings, config = make_settings(shared_folder, tmp_path, "zero2_offload", **changes)
    one, other = tmp_path / "one", tmp_path / "other"
    said = two_ranks.run("resume_runs:train", settings, str(one), config)[0]
    assert f"optimizer HostAdamW ({optim}), {BITS[optim]}" in said
    two_ranks.run("resume_runs:train_with_masters", settings, str(other), config)
    rows = read_rows(one, 1)
    assert rows == read_rows(other, 1)
    assert rows[-1]["loss"] < rows[0]["loss"]
    here, there = read_full(one / LAST), read_full(other / LAST)
    assert here.keys() == there.keys()
    assert all(torch.equal(here[key], there[key]) for key in here)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("stage", [1, 2])
def test_it_follows_deepspeeds_own(two_ranks, shared_folder, tmp_path, dtype, accumulation, stage):
    """Losses and norms of every step, all but the first of them clipped."""
    changes = {
        "ds.bf16.enabled": str(dtype == "bf16").lower(),
        "ds.zero_optimization.stage": stage,
        "gradient_accumulation_steps": accumulation,
        "ds.gradient_clipping": 0.5,
    }
    settings, config = make_settings(shared_folder, tmp_path, "zero2_offload", **changes)
    one, other = tmp_path / "one", tmp_path / "other"
    two_ranks.run("resume_runs:train", settings, str(one), config)
    said = two_ranks.run("resume_runs:train_with_stock", settings, str(other), config)[0]
    assert "optimizer DeepSpeedCPUAdam" in said
    close = 1e-5 if dtype == "fp32" else 1e-3
    for ours, theirs in zip(read_rows(one, 1), read_rows(other, 1), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=close)
        assert ours["grad_norm"] > 0.5
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=10 * close)
    first, second = read_rows(one, 1)[0], read_rows(other, 1)[0]
    assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-6)


@pytest.mark.parametrize("optim", ["adamw_8bit", "adamw"])
def test_a_resumed_run_goes_on_exactly(two_ranks, shared_folder, tmp_path, optim):
    choices: dict[str, Any] = {"optim.master_bits": 24, "gradient_accumulation_steps": 2}
    if optim == "adamw_8bit":
        choices["optim.fp32_embeddings"] = "true"
    settings, config = make_settings(
        shared_folder, tmp_path, "zero2_offload", optim=optim, **BF16, **choices
    )
    check_equal(two_ranks, settings, config, tmp_path, STOP)


@pytest.mark.parametrize(
    ("before", "after"),
    [(("zero2_offload", 2), ("zero3_offload", 2)), (("zero3_offload", 2), ("zero2_offload", 2)),
     (("zero2_offload", 2), ("zero2_offload", 1)), (("zero2_offload", 1), ("zero2_offload", 2))],
)  # fmt: skip
@pytest.mark.parametrize("optim", ["adamw_8bit", "adamw"])
def test_a_run_moves(one_rank, two_ranks, shared_folder, tmp_path, before, after, optim):
    """The weights are the same fp32 numbers; 8-bit moments change where blocks are cut anew."""
    pools, runs = {1: one_rank, 2: two_ranks}, []
    for config, size in (before, after):
        changes = {**BF16, "optim": optim, "per_device_train_batch_size": 4 // size}
        runs.append(make_settings(shared_folder, tmp_path, config, **changes))
    whole, moved, kept = tmp_path / "whole", tmp_path / "moved", tmp_path / "kept"
    pools[before[1]].run("resume_runs:train", runs[0][0], str(whole), runs[0][1])
    copy_checkpoint(whole, moved, STOP)
    copy_checkpoint(whole, kept, STOP)
    said = pools[after[1]].run("resume_runs:train", runs[1][0], str(moved), runs[1][1])[0]
    assert f"resumed from step_{STOP:08d}" in said
    close = 1e-3 if optim == "adamw_8bit" else 1e-4
    for there, here in zip(read_rows(whole, STOP + 1), read_rows(moved, STOP + 1), strict=True):
        assert here["tokens"] == there["tokens"]
        assert here["loss"] == pytest.approx(there["loss"], rel=close)
    # A rate that moves nothing: what is saved next is what has been loaded.
    still = {**runs[1][0], "learning_rate": 1e-30, "max_steps": STOP + 1, "save_steps": 1}
    pools[after[1]].run("resume_runs:train", still, str(kept), runs[1][1])
    loaded = read_full(kept / f"checkpoints/step_{STOP + 1:08d}")
    saved = read_full(whole / f"checkpoints/step_{STOP:08d}")
    masters = [name for name in saved if name.startswith("master/")]
    assert masters
    assert all(torch.equal(loaded[name], saved[name]) for name in masters)


def put_together(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Whole parameters from all ranks' parts, and a check that none is missing."""
    whole = {
        name: np.full(p.numel(), np.nan) for name, p in host_runs.make_small().named_parameters()
    }
    for result in results:
        for name, start, values in result["weights"]:
            assert np.isnan(whole[name][start : start + len(values)]).all()
            whole[name][start : start + len(values)] = values
    assert not any(np.isnan(values).any() for values in whole.values())
    return whole


def train_plainly(accumulation: int) -> tuple[list[float], dict[str, Any]]:
    """One process and torch's AdamW; a gradient that is not there is zero."""
    model = host_runs.make_small()
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for p in named.values() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in named.values() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.99), eps=1e-8)
    norms = []
    for step in range(host_runs.STEPS):
        optimizer.zero_grad(set_to_none=False)
        for number in range(step * accumulation * 2, (step + 1) * accumulation * 2):
            loss = host_runs.measure_loss(model, step, number, torch.float32)
            (loss / (2 * accumulation)).backward()
        for parameter in named.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norms.append(float(torch.nn.utils.clip_grad_norm_(named.values(), 0.1)))
        optimizer.step()
    return norms, {name: p.detach().numpy().reshape(-1) for name, p in named.items()}


WAYS: list[dict[str, Any]] = [
    {},
    {"overlap_comm": True},
    {"reduce_scatter": False},
    {"round_robin_gradients": True},
    {"contiguous_gradients": False, "parameter_alignment": True},
    {"stage": 1},
    {"stage": 1, "overlap_comm": True, "reduce_scatter": False},
]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_reducing_gives_plain_adamw(two_ranks, way, accumulation):
    """With parameters that cuts do not respect, and a layer that a step leaves out."""
    results = two_ranks.run("host_runs:train_small", way, accumulation=accumulation, clip=0.1)
    norms, weights = train_plainly(accumulation)
    found = put_together(results)
    for result in results:
        assert result["norms"] == pytest.approx(norms, rel=1e-5)
        assert result["own"] == 2, "there is a second copy of the weights"
    for name, values in weights.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_in_bf16_every_way_gives_the_same_bits(two_ranks, accumulation):
    """Not clipped: a norm has other last bits where other parts are summed up."""
    options = {"bf16": True, "accumulation": accumulation}
    first = two_ranks.run("host_runs:train_small", {}, **options)
    assert all(result["own"] == 2 for result in first)
    wanted = put_together(first)
    for way in WAYS[1:]:
        if way.get("stage") == 1 and accumulation > 1:
            continue  # Adds micro-steps up before it averages over ranks.
        found = put_together(two_ranks.run("host_runs:train_small", way, **options))
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted), way

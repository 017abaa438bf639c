"""The optimizer in host memory, in whole runs: what it computes, and what it leaves behind."""

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from resume_runs import check_equal, copy_checkpoint, make_settings, read_full, read_rows
from safetensors import safe_open

from bigft.checkpoint.consolidate import consolidate
from bigft.optim.reference import split

pytestmark = pytest.mark.distributed

BF16 = {"ds.bf16.enabled": "true", "optim": "adamw_8bit", "gradient_accumulation_steps": 2}


@pytest.fixture
def trained(two_ranks, shared_folder, tmp_path) -> Any:
    settings, config = make_settings(shared_folder, tmp_path, "zero3_offload", **BF16)
    said = two_ranks.run("resume_runs:train", settings, str(tmp_path / "run"), config)[0]
    return settings, config, tmp_path / "run", said


def test_losses_are_those_with_separate_fp32_weights(trained, two_ranks, tmp_path):
    """Bit for bit: a bf16 weight and its 16 further bits are the fp32 weight."""
    settings, config, run, said = trained
    found = re.search(r"optimizer HostAdamW \(adamw_8bit\), ([\d.]+) bytes of state", said)
    assert found
    assert float(found[1]) == pytest.approx(2.03, abs=0.1)
    other = tmp_path / "other"
    two_ranks.run("resume_runs:train_with_masters", settings, str(other), config)
    assert read_rows(run, 1) == read_rows(other, 1)
    name = "checkpoints/step_00000006"
    one, two = read_full(run / name), read_full(other / name)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_checkpoint_is_compact_and_exports_what_was_trained(trained, tmp_path):
    _, _, run, _ = trained
    checkpoint = run / "checkpoints/step_00000006"
    index = json.loads((checkpoint / "state/index.json").read_text())
    numel = sum(int(np.prod(facts["shape"])) for facts in index["parameters"].values())
    size = sum(path.stat().st_size for path in (checkpoint / "state").glob("*.safetensors"))
    # 2 + 2 of a weight, 2.03 of moments, and the headers of a small model.
    assert size / numel < 6.6
    masters = {k.removeprefix("master/"): v for k, v in read_full(checkpoint).items()}
    for dtype in ("float32", "bfloat16"):
        folder = consolidate(checkpoint, tmp_path / dtype, dtype=dtype).path
        (path,) = folder.glob("*.safetensors")
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                found, master = file.get_tensor(name).reshape(-1), masters[name]
                if dtype == "float32":
                    assert torch.equal(found, master)
                else:
                    upper, _ = split(master.numpy())
                    assert np.array_equal(found.view(torch.uint16).numpy(), upper)


def test_it_learns_like_adamw(trained, two_ranks, tmp_path):
    settings, config, run, _ = trained
    plain = {**settings, "optim": "adamw"}
    two_ranks.run("resume_runs:train", plain, str(tmp_path / "plain"), config)
    pairs = list(zip(read_rows(run, 1), read_rows(tmp_path / "plain", 1), strict=True))
    assert pairs[0][0]["loss"] == pytest.approx(pairs[0][1]["loss"], rel=1e-4)
    for ours, theirs in pairs:
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2)
    assert pairs[-1][0]["loss"] < 0.95 * pairs[0][0]["loss"]


def test_weights_of_24_bits_and_fp32_moments_go_on_exactly(two_ranks, shared_folder, tmp_path):
    choices = {"optim.master_bits": 24, "optim.fp32_embeddings": "true"}
    settings, config = make_settings(shared_folder, tmp_path, "zero3_offload", **BF16, **choices)
    check_equal(two_ranks, settings, config, tmp_path, 3)
    checkpoint = tmp_path / "whole/checkpoints/step_00000006"
    with safe_open(checkpoint / "state/rank_00000.safetensors", framework="pt") as file:
        kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    assert {kind for key, kind in kinds.items() if key.startswith("rest/")} == {"I8"}
    tables = [key for key in kinds if "embed_tokens" in key and "exp_avg" in key]
    assert len(tables) == 2
    masters = {k.removeprefix("master/"): v for k, v in read_full(checkpoint).items()}
    (path,) = consolidate(checkpoint, tmp_path / "out", dtype="float32").path.glob("*.safetensors")
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            assert torch.equal(file.get_tensor(name).reshape(-1), masters[name])
    # With all 32 bits it goes on from there, too, from the same losses.
    other = tmp_path / "wider"
    copy_checkpoint(tmp_path / "whole", other, 3)
    two_ranks.run("resume_runs:train", {**settings, "optim.master_bits": 32}, str(other), config)
    pairs = zip(read_rows(other, 4), read_rows(tmp_path / "whole", 4), strict=True)
    for wider, narrow in pairs:
        assert wider["loss"] == pytest.approx(narrow["loss"], rel=1e-3)


def test_adamw_with_fp32_moments_is_the_same_step(two_ranks, shared_folder, tmp_path):
    """Bit for bit that of separate fp32 weights, too."""
    changes = {**BF16, "optim": "adamw"}
    settings, config = make_settings(shared_folder, tmp_path, "zero3_offload", **changes)
    one, other = tmp_path / "one", tmp_path / "other"
    said = two_ranks.run("resume_runs:train", settings, str(one), config)[0]
    assert "optimizer HostAdamW (adamw), 8 bytes of state per parameter" in said
    two_ranks.run("resume_runs:train_with_masters", settings, str(other), config)
    assert read_rows(one, 1) == read_rows(other, 1)


def test_a_rate_of_1e_5_moves_weights_that_bf16_alone_would_freeze(
    two_ranks, shared_folder, tmp_path
):
    changes = {**BF16, "learning_rate": 1e-5, "optim.lr_scheduler_type": "constant"}
    settings, config = make_settings(shared_folder, tmp_path, "zero3_offload", **changes)
    settings |= {"max_steps": 20, "save_steps": 1, "optim.weight_decay": 0}
    moved = {}
    for name in ("train", "train_without_rest"):
        run = tmp_path / name
        two_ranks.run(f"resume_runs:{name}", settings, str(run), config)
        first, last = (read_full(run / f"checkpoints/step_{step:08d}") for step in (1, 20))
        pairs = [
            (first[key], last[key])
            for key in first
            # Steps of 1e-5 are lost on what is larger than 0.005 or so.
            if key.startswith("master/") and key.endswith("proj.weight")
        ]
        large = [(one[one.abs() > 0.01], other[one.abs() > 0.01]) for one, other in pairs]
        counts = [(len(one), int((one != other).sum())) for one, other in large]
        moved[name] = sum(n for _, n in counts) / sum(n for n, _ in counts)
    assert moved["train"] > 0.99
    assert moved["train_without_rest"] < 0.05

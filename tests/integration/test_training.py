"""Whole runs with real DeepSpeed on two ranks, held against plain torch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import ds_config, read_losses, read_metrics, read_steps, small_settings

pytestmark = pytest.mark.distributed


FP32 = {"ds.bf16.enabled": "false"}


def test_gradients_do_not_depend_on_ranks_or_accumulation(one_rank, two_ranks, shared_folder):
    """Oracle: one rank with a batch of 8 = two ranks with 4 = one rank accumulating 4 x 2."""
    base = small_settings(shared_folder, **FP32)
    function, config = "runs:gradients", ds_config("zero3")
    whole = dict(
        one_rank.run(function, {**base, "per_device_train_batch_size": 8}, "x", config, 4)[0]
    )
    split = dict(
        two_ranks.run(function, {**base, "per_device_train_batch_size": 4}, "x", config, 4)[0]
    )
    accumulated = dict(
        one_rank.run(
            function,
            {**base, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
            "x",
            config,
            4,
        )[0]
    )
    both = dict(
        two_ranks.run(
            function,
            {**base, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
            "x",
            config,
            4,
        )[0]
    )
    norm = np.sqrt(sum((g**2).sum() for g in whole.values()))
    assert norm > 1e-3
    for other in (split, accumulated, both):
        assert other.keys() == whole.keys()
        distance = np.sqrt(sum(((whole[n] - other[n]) ** 2).sum() for n in whole))
        assert distance / norm < 1e-6


def _reference_losses(shared: Path, steps: int) -> list[float]:
    """Train the same model on the same batches with plain torch: AdamW, fp32, one process."""
    from functools import partial

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bigft.data.build import build_data
    from bigft.data.loading.loader import Share
    from bigft.data.order.cursor import Cursor
    from bigft.data.section import DataSection

    tokenizer = AutoTokenizer.from_pretrained(shared / "model")
    data = build_data(
        DataSection(
            train=str(shared / "chat.jsonl"),
            max_length=64,
            eval_fraction=0.1,
            loading={"cache_dir": str(shared / "cache")},
        ),
        tokenizer=tokenizer,
        share=Share(micro_batch_size=4),
        local_rank=0,
        eval_batch_size=1,
        seed=42,
        barrier=lambda: None,
    )
    model = AutoModelForCausalLM.from_pretrained(shared / "model", dtype=torch.float32)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}], lr=1e-3
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses = []
    batches = data.train.steps_from(Cursor())
    for _ in range(steps):
        batch = next(batches).micro_batches[0]
        # With a cache transformers does not see that examples share a sequence.
        logits = model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        ).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), batch.labels[:, 1:].flatten(), ignore_index=-100
        )
        optimizer.zero_grad()
        loss.backward()
        partial(torch.nn.utils.clip_grad_norm_, max_norm=1.0)(model.parameters())
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def reference(shared_folder) -> list[float]:
    return _reference_losses(shared_folder, 30)


@pytest.mark.parametrize("config", ["zero3_offload", "zero2", "zero3_nvme"])
def test_thirty_steps_equal_plain_torch(two_ranks, shared_folder, tmp_path, reference, config):
    settings = small_settings(shared_folder, max_steps=30, **FP32)
    two_ranks.run("runs:train", settings, str(tmp_path / "run"), ds_config(config))
    losses = read_losses(tmp_path / "run")
    assert len(losses) == 30
    assert losses[29] < 0.85 * losses[0], "nothing was learned: the comparison would be empty"
    worst = max(abs(a - b) / b for a, b in zip(losses, reference, strict=True))
    assert abs(losses[29] - reference[29]) / reference[29] <= 1e-4
    assert worst <= 2e-4


@pytest.mark.parametrize(
    "config", ["zero1", "zero2_offload", "zero3", "zero3_offload", "zero3_nvme"]
)
def test_resume_goes_on_where_the_run_stopped(two_ranks, shared_folder, tmp_path, config):
    """Train 6 = train 3, stop, resume 3: the same losses, the same weights."""
    settings = small_settings(shared_folder, max_steps=6, save_steps=3, **FP32)
    whole = tmp_path / "whole"
    two_ranks.run("runs:train", settings, str(whole), ds_config(config))
    halved = tmp_path / "halved"
    first = {**settings, "resume": "never"}
    two_ranks.run("runs:train", first, str(halved), ds_config(config))
    # As if the run had been killed after step 3.
    import shutil

    shutil.rmtree(halved / "checkpoints/step_00000006")
    shutil.rmtree(halved / "model")
    (halved / "metrics.jsonl").unlink()
    said = two_ranks.run("runs:train", settings, str(halved), ds_config(config))[0]["said"]
    assert "resumed from step_00000003" in said
    rows = read_steps(halved)
    assert [row["step"] for row in rows] == [4, 5, 6]
    np.testing.assert_allclose(read_losses(halved), read_losses(whole)[3:], rtol=2e-6)
    assert rows[-1]["tokens"] == read_metrics(whole)[-2]["tokens"]


def test_a_streamed_run_goes_on_and_keeps_each_rejected_row_once(
    two_ranks, shared_folder, tmp_path
):
    good = (shared_folder / "chat.jsonl").read_text().splitlines()[:30]
    lines = [*good[:3], '{"text": 5}', *good[3:20], "not json", *good[20:]]
    (tmp_path / "chat.jsonl").write_text("".join(line + "\n" for line in lines))
    changes = {"data.loading.streaming": "true", "data.on_bad_row": "skip", "packing": "none"}
    settings = small_settings(shared_folder, data=tmp_path / "chat.jsonl", **FP32, **changes)
    settings["data.eval_fraction"] = 0
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    two_ranks.run("runs:train", {**settings, "max_steps": 9}, str(whole), ds_config("zero3"))
    two_ranks.run("runs:train", {**settings, "max_steps": 4}, str(halved), ds_config("zero3"))
    # The second run begins within the window of the first, and goes on into the next epoch.
    two_ranks.run("runs:train", {**settings, "max_steps": 9}, str(halved), ds_config("zero3"))
    for folder in (whole, halved):
        kept = (folder / "rejected.jsonl").read_text().splitlines()
        places = [json.loads(line)["origin"].rpartition(":")[2] for line in kept]
        assert places == ["4", "22"]
    assert [row["tokens"] for row in read_metrics(halved)] == [
        row["tokens"] for row in read_metrics(whole)
    ]


@pytest.mark.parametrize("folder", ["model", "tied"])
def test_export_gives_the_same_evaluation_in_plain_transformers(
    two_ranks, shared_folder, tmp_path, folder
):
    """The exported folder, loaded by transformers alone, scores like the engine did."""
    import runs_check
    from transformers import AutoTokenizer

    settings = small_settings(shared_folder, model=shared_folder / folder)
    two_ranks.run("runs:train", settings, str(tmp_path / "run"), ds_config("zero3"))
    logits = two_ranks.run(
        "runs_check:engine_logits", settings, str(tmp_path / "run"), ds_config("zero3")
    )
    plain = runs_check.plain_logits(tmp_path / "run/model")
    assert plain.dtype == torch.bfloat16
    assert torch.equal(torch.from_numpy(logits[0]).to(torch.bfloat16), plain)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    assert tokenizer.chat_template


def test_nvme_run_leaves_no_swap_files_behind(two_ranks, shared_folder, tmp_path):
    nvme = tmp_path / "disk"
    nvme.mkdir()
    (nvme / "zero_stage_3").mkdir()
    (nvme / "zero_stage_3/of_another_job").write_text("precious")
    path = "ds.zero_optimization.offload_{}.nvme_path"
    settings = small_settings(shared_folder, max_steps=2) | {
        path.format(part): nvme for part in ("param", "optimizer")
    }
    settings["checkpoint.write"] = "background"
    said = two_ranks.run("runs:train", settings, str(tmp_path / "run"), ds_config("zero3_nvme"))[0]
    assert "note: states on NVMe are saved in the foreground" in said["said"]
    assert (nvme / "zero_stage_3/of_another_job").read_text() == "precious"
    assert [path.name for path in nvme.iterdir()] == ["zero_stage_3"]


def test_8bit_states_really_run_under_host_offload(two_ranks, shared_folder, tmp_path):
    settings = small_settings(shared_folder, optim="adamw_8bit", max_steps=8)
    arguments = (settings, str(tmp_path / "run"), ds_config("zero3_offload"))
    said = two_ranks.run("runs:train", *arguments)[0]
    assert "optimizer HostAdamW (adamw_8bit), 2." in said["said"]
    assert "slower" not in said["said"]
    assert "were expected" not in said["said"], "the measured state bytes differ from the plan"
    losses = read_losses(tmp_path / "run")
    assert losses[-1] < losses[0]


def test_a_repeat_from_resolved_gives_the_same_losses(two_ranks, shared_folder, tmp_path):
    settings = small_settings(shared_folder, **FP32)
    two_ranks.run("runs:train", settings, str(tmp_path / "a"), ds_config("zero3"))
    resolved = tmp_path / "a/resolved"
    two_ranks.run(
        "runs:train",
        {"recipe": resolved / "run.yaml"},
        str(tmp_path / "b"),
        str(resolved / "ds_config.json"),
    )
    assert read_losses(tmp_path / "b") == read_losses(tmp_path / "a")


def test_metrics_have_the_keys_of_the_contract(two_ranks, shared_folder, tmp_path):
    settings = small_settings(shared_folder, eval_steps=2)
    two_ranks.run("runs:train", settings, str(tmp_path / "run"), ds_config("zero3"))
    rows = read_metrics(tmp_path / "run")
    wanted = (
        "step epoch loss learning_rate grad_norm tokens tokens_per_second step_seconds data_seconds"
        " forward_seconds backward_seconds optimizer_seconds mfu host_rss_bytes device_peak_bytes"
        " skipped_steps"
    ).split()
    train_rows = [row for row in rows if "loss" in row]
    assert all(list(row) == wanted for row in train_rows)
    assert train_rows[0]["mfu"] is None
    assert train_rows[0]["host_rss_bytes"] > 2 * 10**8
    evaluations = [row for row in rows if "eval_loss" in row]
    assert [row["step"] for row in evaluations] == [0, 2, 4]
    assert {"eval_perplexity", "eval_token_accuracy"} <= evaluations[0].keys()
    assert list((tmp_path / "run/tensorboard").glob("events.*"))


def test_shared_memory_is_freed_with_the_last_process(two_ranks):
    """A named buffer in /dev/shm would hold 66 MiB per rank until the machine restarts."""
    for lines in two_ranks.run("runs:mapped_shared_buffers"):
        assert len(lines) >= 2, "each rank maps the buffers of both"
        assert all(line.endswith("(deleted)") for line in lines), lines

"""Weights beside the trained ones: the moving average, and Reptile's start weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from making import make_messages
from resume_runs import (
    STEPS,
    STOP,
    check_equal,
    copy_checkpoint,
    digest_state,
    make_settings,
    read_full,
    read_rows,
)
from safetensors.torch import load_file
from small_runs import ds_config, read_losses, read_metrics

from bigft.checkpoint.consolidate import consolidate

pytestmark = pytest.mark.distributed

DECAY = 0.8
BF16 = {"ds.bf16.enabled": "true"}
EIGHT = {**BF16, "optim": "adamw_8bit"}
NARROW = {**EIGHT, "optim.master_bits": 24}
ZERO0 = {"ds.zero_optimization.stage": 0}
PLACES = [("zero2", {**ZERO0, **BF16}), ("zero1", BF16), ("zero3", {}), ("zero3_offload", NARROW)]
MORE_PLACES = [
    ("zero2", ZERO0),
    ("zero1", {}),
    ("zero2", EIGHT),
    ("zero2_offload", {}),
    ("zero2_offload", EIGHT),
    ("zero3", BF16),
    ("zero3_offload", {}),
    ("zero3_offload", BF16),
]


def read_shadow(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Put the shadow of every parameter together."""
    from bigft.checkpoint.state.index import read_index
    from bigft.checkpoint.state.read import StateReader

    index = read_index(checkpoint)
    found = {}
    with StateReader(checkpoint, index.world_size) as reader:
        for name, facts in index.parameters.items():
            found[name] = torch.zeros(int(torch.tensor(facts["shape"]).prod()))
            reader.fill("shadow", name, 0, found[name])
    return found


def read_masters(checkpoint: Path) -> dict[str, torch.Tensor]:
    found = read_full(checkpoint).items()
    return {name.removeprefix("master/"): value for name, value in found if "master/" in name}


def step_folder(run: Path, step: int) -> Path:
    return run / f"checkpoints/step_{step:08d}"


@pytest.mark.parametrize(
    ("config", "changes"),
    [*PLACES, *(pytest.param(*place, marks=pytest.mark.nightly) for place in MORE_PLACES)],
)
def test_the_average_follows_the_weights_wherever_these_are(
    two_ranks, shared_folder, tmp_path, config, changes
):
    """The oracle averages the weights of every step's checkpoint; evaluations change no bit."""
    settings, ds = make_settings(shared_folder, tmp_path, config, **changes)
    # At stage 0 in bf16, DeepSpeed's start is a step without gradients, which decays the weights.
    settings |= {"optim.weight_decay": 0, "data.eval_fraction": 0.1}
    settings |= {"trainer.ema": DECAY, "save_steps": 1, "max_steps": 3}
    quiet = {**settings, "evaluation.eval_on_start": "false", "save_steps": 0}
    run, other = tmp_path / "run", tmp_path / "other"
    said = two_ranks.run("resume_runs:train", {**settings, "eval_steps": 1}, str(run), ds)[0]
    assert f"moving average of the weights, decay {DECAY}: 4 bytes per parameter" in said
    dtype = torch.bfloat16 if settings["ds.bf16.enabled"] == "true" else torch.float32
    weights = load_file(shared_folder / "model/model.safetensors")
    average = {name: w.to(dtype).float().view(-1) for name, w in weights.items()}
    for step in range(1, 4):
        masters = read_masters(step_folder(run, step))
        average = {n: DECAY * w + (1 - DECAY) * masters[n] for n, w in average.items()}
        found = read_shadow(step_folder(run, step))
        for name, value in average.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8, msg=name)
    two_ranks.run("resume_runs:train", quiet, str(other), ds)
    assert digest_state(step_folder(other, 3)) == digest_state(step_folder(run, 3))


def _plainly(model: Any, optimizer: Any, batches: Any, steps: int) -> Any:
    """Ordinary steps of torch; gives the loss of each."""
    for _ in range(steps):
        batch = next(batches).micro_batches[0]
        loss = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield loss.item()


def _open(settings: dict[str, Any], **changes: Any) -> tuple[Any, Any, Any]:
    """The data of a run in one process, its model, and its optimizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bigft.data.build import build_data
    from bigft.data.loading.loader import Share
    from bigft.data.section import DataSection

    section = DataSection(
        train=str(settings["data"]),
        max_length=settings["max_length"],
        packing="none",
        eval_fraction=settings["data.eval_fraction"],
        loading={"cache_dir": str(settings["data.loading.cache_dir"])},
    )
    data = build_data(
        section,
        tokenizer=AutoTokenizer.from_pretrained(settings["model"]),
        share=Share(micro_batch_size=4, **changes),
        local_rank=0,
        eval_batch_size=1,
        seed=42,
        barrier=lambda: None,
    )
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    beta = settings.get("optim.adam_beta1", 0.9)
    rest = {"lr": 1e-3, "weight_decay": 0.0, "betas": (beta, 0.999)}
    return data, model, torch.optim.AdamW(model.parameters(), **rest)


def _measure(model: Any, data: Any) -> float:
    """Mean loss of the held-out tokens."""
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in data.evaluation.eval_batches():
            labels = batch.labels
            found = model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels
            )
            tokens = int((labels[:, 1:] != -100).sum())
            total, count = total + found.loss.item() * tokens, count + tokens
    return total / count


def _plain_settings(shared_folder: Path, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    own = {
        "packing": "none",
        "data.eval_fraction": 0.2,
        "optim.weight_decay": 0,
        "optim.lr_scheduler_type": "constant",
        "eval_steps": 1,
    }
    return make_settings(shared_folder, tmp_path, "zero3_offload", **{**own, **changes})[0]


def test_the_average_is_that_of_torch_and_is_evaluated_and_exported(
    two_ranks, shared_folder, tmp_path
):
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
    from transformers import AutoModelForCausalLM

    settings = _plain_settings(shared_folder, tmp_path, **{"trainer.ema": DECAY})
    run = tmp_path / "run"
    config = ds_config("zero3_offload")
    said = two_ranks.run("runs:train", settings, str(run), config)[0]["said"]
    data, model, optimizer = _open(settings)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    average.update_parameters(model)  # The first one copies.
    from bigft.data.order.cursor import Cursor

    losses, scores = [], [_measure(average, data)]
    for loss in _plainly(model, optimizer, data.train.steps_from(Cursor()), STEPS):
        average.update_parameters(model)
        losses.append(loss)
        scores.append(_measure(average, data))
    assert read_losses(run) == pytest.approx(losses, rel=2e-4)
    rows = [row for row in read_metrics(run) if "eval_loss" in row]
    assert [row["eval_loss"] for row in rows] == pytest.approx(scores, rel=2e-4)
    assert {row["eval_ema"] for row in rows} == {DECAY}
    # Of the weights themselves the losses are others: it matters what is evaluated.
    assert _measure(model, data) < scores[-1] - 0.01
    exported = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    assert _measure(exported, data) == pytest.approx(scores[-1], rel=2e-4)
    kept = read_shadow(step_folder(run, STEPS))
    for name, weight in exported.named_parameters():
        assert torch.equal(weight.view(-1), kept[name])
    assert "moving average over the steps, decay 0.8" in (run / "model/README.md").read_text()
    assert f"evaluation at step {STEPS} (ema {DECAY})" in said
    bf16 = consolidate(step_folder(run, STEPS), tmp_path / "bf16", dtype="bfloat16").path
    rounded = load_file(bf16 / "model.safetensors")
    assert torch.equal(rounded["lm_head.weight"].view(-1), kept["lm_head.weight"].bfloat16())


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ("zero2_offload", EIGHT),
        pytest.param("zero2", BF16, marks=pytest.mark.nightly),
        pytest.param("zero3_offload", NARROW, marks=pytest.mark.nightly),
    ],
)
def test_a_resumed_average_is_the_same_bit_for_bit(
    two_ranks, shared_folder, tmp_path, config, changes
):
    changes = {**changes, "trainer.ema": DECAY, "data.eval_fraction": 0.1}
    settings, ds = make_settings(shared_folder, tmp_path, config, **changes)
    check_equal(two_ranks, settings, ds, tmp_path, STOP)
    assert read_shadow(step_folder(tmp_path / "half", STEPS))


def test_an_average_moves_to_other_ranks_and_can_begin_late(
    one_rank, two_ranks, shared_folder, tmp_path
):
    changes = {"trainer.ema": DECAY, "per_device_train_batch_size": 4}
    settings, ds = make_settings(shared_folder, tmp_path, "zero3_offload", **changes)
    whole, moved, late = tmp_path / "whole", tmp_path / "moved", tmp_path / "late"
    two_ranks.run("resume_runs:train", settings, str(whole), ds)
    for folder in (moved, late):
        copy_checkpoint(whole, folder, STOP)
    one_rank.run("resume_runs:train", {**settings, "max_steps": 4}, str(moved), ds)
    one, other = read_shadow(step_folder(whole, STOP)), read_shadow(step_folder(moved, 4))
    masters = read_masters(step_folder(moved, 4))
    for name, before in one.items():
        expected = before.lerp(masters[name], 1 - DECAY)
        torch.testing.assert_close(other[name], expected, rtol=1e-6, atol=1e-8)
    # Without an average in the checkpoint, it begins with the weights.
    plain = {**settings, "trainer.ema": 0}
    two_ranks.run("resume_runs:train", {**plain, "max_steps": 4}, str(late), ds)
    said = two_ranks.run("resume_runs:train", {**settings, "max_steps": 5}, str(late), ds)[0]
    assert "trainer.ema was 0.0, is 0.8" in said
    before, after = (read_masters(step_folder(late, step)) for step in (4, 5))
    for name, value in read_shadow(step_folder(late, 5)).items():
        expected = before[name].lerp(after[name], 1 - DECAY)
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-8)


# Reptile.

INNER = 2


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three parts; the smallest has fewer rows than a round on it takes."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = {"a": 30, "b": 4, "c": 24}
    paths = [make_messages(folder / f"{n}.jsonl", rows=rows[n], seed=ord(n)) for n in rows]
    return ",".join(map(str, paths))


def _reptile_settings(shared: Path, tmp: Path, tasks: str, **changes: Any) -> dict[str, Any]:
    own = {"data": tasks, "trainer.reptile.inner_steps": INNER, "trainer.reptile.outer_rate": 0.5}
    return _plain_settings(shared, tmp, **{**own, **changes})


def test_reptile_is_the_plain_loop(two_ranks, shared_folder, tmp_path, tasks):
    from transformers import AutoModelForCausalLM

    from bigft.data.order.cursor import Cursor

    settings = _reptile_settings(shared_folder, tmp_path, tasks)
    run, config = tmp_path / "run", ds_config("zero3_offload")
    said = two_ranks.run("runs:train", settings, str(run), config)[0]["said"]
    assert "Reptile: 2 steps on each part, then 0.5 (linear) of the way is kept" in said
    data, model, optimizer = _open({**settings, "optim.adam_beta1": 0.0}, inner_steps=INNER)
    batches = data.train.steps_from(Cursor())
    losses, scores = [], [_measure(model, data)]
    rounds = STEPS // INNER
    for number in range(rounds):
        start = [parameter.detach().clone() for parameter in model.parameters()]
        losses += _plainly(model, optimizer, batches, INNER)
        rate = 0.5 * (1 - number / rounds)
        with torch.no_grad():
            for parameter, before in zip(model.parameters(), start, strict=True):
                parameter.copy_(before + rate * (parameter - before))
        # An evaluation within a round is of the weights that it began with.
        scores += [scores[-1]] * (INNER - 1) + [_measure(model, data)]
    assert read_losses(run) == pytest.approx(losses, rel=2e-4)
    rows = [row for row in read_metrics(run) if "eval_loss" in row]
    assert [row["eval_loss"] for row in rows] == pytest.approx(scores, rel=2e-4)
    exported = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    assert _measure(exported, data) == pytest.approx(scores[-1], rel=2e-4)
    assert "Reptile, 2 steps on each task" in (run / "model/README.md").read_text()


@pytest.mark.parametrize(
    ("config", "changes"),
    [("zero3_offload", NARROW), pytest.param("zero2", BF16, marks=pytest.mark.nightly)],
)
def test_reptile_goes_on_within_a_round(two_ranks, shared_folder, tmp_path, tasks, config, changes):
    own = {"trainer.reptile.inner_steps": INNER, "data": tasks, "data.eval_fraction": 0.1}
    settings, ds = make_settings(shared_folder, tmp_path, config, **changes, **own)
    assert STOP % INNER, "in the middle of a round"
    check_equal(two_ranks, settings, ds, tmp_path, STOP)
    # What such a checkpoint exports are the start weights, not those of the last part.
    checkpoint = step_folder(tmp_path / "whole", STOP)
    masters, start = read_masters(checkpoint), read_shadow(checkpoint)
    folder = consolidate(checkpoint, tmp_path / "out", dtype="float32").path
    found = load_file(folder / "model.safetensors")
    assert all(torch.equal(found[name].view(-1), start[name]) for name in start)
    assert not torch.equal(start["lm_head.weight"], masters["lm_head.weight"])
    other = {**settings, "trainer.reptile.inner_steps": 3}
    kind, text, code = two_ranks.run("runs:try_train", other, str(tmp_path / "half"), ds)[0]
    assert (kind, code) == ("CheckpointError", 5)
    assert "steps on each part: 2 in the checkpoint, 3 now" in text


def test_reptile_moves_to_other_ranks(one_rank, two_ranks, shared_folder, tmp_path, tasks):
    own = {"trainer.reptile.inner_steps": INNER, "data": tasks, "per_device_train_batch_size": 4}
    settings, ds = make_settings(shared_folder, tmp_path, "zero3_offload", **own)
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    two_ranks.run("resume_runs:train", settings, str(whole), ds)
    copy_checkpoint(whole, moved, STOP)
    one_rank.run("resume_runs:train", settings, str(moved), ds)
    for there, here in zip(read_rows(whole, STOP + 1), read_rows(moved, STOP + 1), strict=True):
        assert here["tokens"] == there["tokens"]
        assert here["loss"] == pytest.approx(there["loss"], rel=1e-5)
    one, other = (read_shadow(step_folder(run, STEPS)) for run in (whole, moved))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-6)

"""Several tasks with one body: two ranks under ZeRO-3 with offload against plain torch."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from several_tasks import FAMILIES, Case, compute_plain, load_head, load_plain, make_folder
from small_runs import ds_config, read_losses, read_metrics

pytestmark = pytest.mark.distributed

STEPS = 6


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and data for each task."""
    root = tmp_path_factory.mktemp(request.param)
    (root / "parts.json").write_text(json.dumps(make_folder(root, request.param)))
    return root


def _settings(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "task": "multitask",
        "task.parts": (folder / "parts.json").read_text(),
        "model": folder / "start",
        "data.loading.cache_dir": folder / "cache",
        "data.eval_fraction": 0.1,
        "max_length": 32,
        "learning_rate": 1e-3,
        "optim.lr_scheduler_type": "constant",
        # One sequence at a time: two ranks never have the same mixture, and mostly other tasks.
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "evaluation.per_device_eval_batch_size": 4,
        "max_steps": STEPS,
        "ds.bf16.enabled": "false",
        **changes,
    }


def _train_plainly(folder: Path, start: Path) -> tuple[list[float], dict[str, Any]]:
    """Plain models that share a body, one after the other on the rows of their tasks.

    Args:
        folder: Of the data.
        start: Where models may be put.

    Returns:
        The losses, and the models.
    """
    from bigft.data.loading.loader import Share

    parts = json.loads((folder / "parts.json").read_text())
    case = Case(folder, parts)
    models = {name: load_plain(case, name, start) for name in parts}
    prefix = next(iter(models.values())).base_model_prefix
    # Of BERT's, only those that sum a text up have a pooler.
    body = max((getattr(one, prefix) for one in models.values()), key=_count)
    for model in models.values():
        setattr(model, prefix, body)
        model.tie_weights()
    every = list({id(p): p for model in models.values() for p in model.parameters()}.values())
    groups = [
        {"params": [p for p in every if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    losses = []
    batches = case.steps(Share(8))
    for _ in range(STEPS):
        (batch,) = next(batches).micro_batches
        loss = torch.zeros(())
        for (name, part), mine in zip(parts.items(), batch.parts, strict=True):
            total, terms = compute_plain(models[name], part["task"], mine)
            if terms:
                loss = loss + part.get("weight", 1.0) * total / terms
        for parameter in every:
            # A task without a row has a gradient of zero; to AdamW that is not the same as none.
            parameter.grad = torch.zeros_like(parameter)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(every, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses, models


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_a_run_is_that_of_plain_torch_and_resumes_and_exports(two_ranks, folder, tmp_path):
    config = ds_config("zero3_offload")
    wanted, models = _train_plainly(folder, tmp_path / "plain")
    run = tmp_path / "run"
    two_ranks.run("runs:train", _settings(folder), str(run), config)
    assert read_losses(run) == pytest.approx(wanted, rel=2e-4)
    half = tmp_path / "half"
    first = _settings(folder, max_steps=STEPS // 2)
    two_ranks.run("runs:train", first, str(half), config)
    two_ranks.run("runs:train", _settings(folder), str(half), config)
    assert read_losses(half) == pytest.approx(read_losses(run), rel=1e-6)
    _check_export(folder, run, models)


@pytest.mark.parametrize("config", ["zero3_nvme", "zero2_offload"])
def test_other_placements_take_the_same_steps(one_rank, folder, tmp_path, config):
    """Under NVMe, what is partitioned after the model was loaded must not cost its swap files."""
    changes = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 2}
    settings = _settings(folder, **changes)
    one_rank.run("runs:train", settings, str(tmp_path / "run"), ds_config(config))
    wanted, _ = _train_plainly(folder, tmp_path / "plain")
    assert read_losses(tmp_path / "run") == pytest.approx(wanted[:2], rel=2e-4)


def _check_export(folder: Path, run: Path, models: dict[str, Any]) -> None:
    """Each head, loaded by transformers, says what the plain models say after the same steps."""
    from transformers import AutoModel, AutoTokenizer

    from bigft.checkpoint.consolidate import consolidate
    from bigft.errors import CheckpointError, ConfigError
    from bigft.evaluation.plain import check_model

    parts = json.loads((folder / "parts.json").read_text())
    last = [row for row in read_metrics(run) if "eval_loss" in row][-1]
    weighted = [p.get("weight", 1.0) * last[f"eval_loss/{name}"] for name, p in parts.items()]
    assert last["eval_loss"] == pytest.approx(sum(weighted))
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    text = tokenizer("red cat runs near the dog", return_tensors="pt")
    inputs = {"input_ids": text["input_ids"], "attention_mask": text["attention_mask"]}
    body = (run / "model/model.safetensors").stat().st_ino
    for name, part in parts.items():
        place = run / "model" / name
        check_model(str(place))
        model = load_head(place, part["task"])
        with torch.no_grad():
            found, expected = model(**inputs).logits, models[name].eval()(**inputs).logits
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
        assert AutoTokenizer.from_pretrained(place).get_vocab() == tokenizer.get_vocab()
        assert f"{part['task']}" == _find_task(place)
        shared = [file for file in place.glob("*.safetensors") if file.stat().st_ino == body]
        assert len(shared) == 1
        if part["task"] != "masked_lm":  # Of other rows other tokens would be hidden.
            scores = _score(folder, place, part)
            assert scores["loss"] == pytest.approx(last[f"eval_loss/{name}"], rel=1e-5)
    assert AutoModel.from_pretrained(run / "model").config.num_labels == 2
    with pytest.raises(CheckpointError, match=f"give one of {run}/model/topic, "):
        check_model(str(run / "model"))
    # In many files, read again from the disk: the same numbers.
    small = consolidate(run, run / "small", max_shard_bytes=30_000, verify=True)
    assert small.reread
    assert small.bytes > sum(file.stat().st_size for file in small.path.glob("*.safetensors"))
    for name, part in parts.items():
        one, other = (load_head(run / kind / name, part["task"]) for kind in ("model", "small"))
        for key, value in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[key], value, rtol=0, atol=0)
    with pytest.raises(ConfigError, match="Leave --model out"):
        consolidate(run, run / "other", assets=folder / "start")


def _find_task(place: Path) -> str:
    from bigft.tasks.task import find_task

    return find_task(json.loads((place / "config.json").read_text()))


def _score(folder: Path, place: Path, part: dict[str, Any]) -> dict[str, float]:
    """Score the rows that the run held out of one task."""
    from transformers import AutoTokenizer

    from bigft.data.build import build_data
    from bigft.data.loading.loader import Share
    from bigft.data.section import DataSection
    from bigft.evaluation.loop import evaluate, keep_rows, stay_alone
    from bigft.tasks.rows import build_rows
    from bigft.tasks.section import TaskSection
    from bigft.tasks.task import build_task

    section = DataSection(
        train=part["data"],
        max_length=32,
        packing="none",
        eval_fraction=0.1,
        loading={"cache_dir": str(folder / "cache")},
    )
    config = json.loads((place / "config.json").read_text())
    task_section = TaskSection(name=part["task"])
    rows = build_rows(task_section, section, config)
    task = build_task(task_section, rows)
    data = build_data(
        section,
        tokenizer=AutoTokenizer.from_pretrained(place),
        share=Share(1),
        local_rank=0,
        eval_batch_size=1,
        seed=42,
        barrier=lambda: None,
        lay_out=rows.lay_out,
    )
    assert data.evaluation is not None
    return evaluate(
        task,
        load_head(place, part["task"]),
        data.evaluation.eval_batches(),
        device=torch.device("cpu"),
        sum_over_ranks=stay_alone,
        gather=keep_rows,
    )

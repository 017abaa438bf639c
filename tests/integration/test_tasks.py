"""Every task: two ranks under ZeRO-3 with offload, held against plain torch in one process."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from making import WORDS, llama_config, make_tokenizer
from small_runs import ds_config, read_losses, read_metrics
from task_rows import bert_config, t5_config

pytestmark = pytest.mark.distributed

STEPS = 6


@dataclass
class Case:
    """A task on a small model with weights, and what transformers says of a batch."""

    model: Callable[[], Any]
    row: Callable[[list[str]], dict[str, Any]]
    labels: Callable[[Any], Any] = lambda batch: batch.labels
    settings: dict[str, Any] = field(default_factory=dict)


def _make_bert(**changes: Any) -> Any:
    from transformers import BertForSequenceClassification

    return BertForSequenceClassification(bert_config(**changes))


def _make_llama() -> Any:
    from transformers import LlamaForSequenceClassification

    return LlamaForSequenceClassification(llama_config(id2label={0: "cat", 1: "dog", 2: "none"}))


def _make_t5() -> Any:
    from transformers import T5ForConditionalGeneration

    return T5ForConditionalGeneration(t5_config())


def _make_masked() -> Any:
    from transformers import BertForMaskedLM

    return BertForMaskedLM(bert_config())


def _name(words: list[str]) -> str:
    return next((word for word in words if word in ("cat", "dog")), "none")


CASES = {
    "classification": Case(
        lambda: _make_bert(id2label={0: "cat", 1: "dog", 2: "none"}),
        lambda words: {"text": " ".join(words), "label": _name(words)},
        lambda batch: batch.labels[:, 0],
    ),
    "classification-decoder": Case(
        _make_llama,
        lambda words: {"text": " ".join(words), "label": _name(words)},
        lambda batch: batch.labels[:, 0],
    ),
    "classification-many": Case(
        lambda: _make_bert(
            id2label={0: "red", 1: "blue"}, problem_type="multi_label_classification"
        ),
        lambda words: {
            "text": " ".join(words),
            "labels": sorted({"red", "blue"} & set(words)),
        },
        lambda batch: batch.labels.float(),
    ),
    "regression": Case(
        lambda: _make_bert(num_labels=2, problem_type="regression"),
        lambda words: {"text": " ".join(words), "label": [len(words) / 8, words.count("the")]},
    ),
    "seq2seq": Case(
        _make_t5,
        lambda words: {"source": " ".join(words), "target": " ".join(reversed(words[:4]))},
        settings={"task.prefix": "turn: "},
    ),
    "masked_lm": Case(_make_masked, lambda words: {"text": " ".join(words)}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with weights and a data file for each case."""
    root = tmp_path_factory.mktemp("tasks")
    chooser = random.Random(0)
    for name, case in CASES.items():
        torch.manual_seed(1)
        case.model().save_pretrained(root / name)
        tokenizer = make_tokenizer(root / name)
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
        tokenizer.save_pretrained(root / name)
        rows = [case.row(chooser.choices(WORDS, k=chooser.randint(4, 14))) for _ in range(80)]
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def _settings(folders: Path, name: str, **changes: Any) -> dict[str, Any]:
    return {
        "task": name.partition("-")[0],
        "model": folders / name,
        "data": folders / f"{name}.jsonl",
        "data.loading.cache_dir": folders / "cache",
        "data.eval_fraction": 0.1,
        "max_length": 32,
        "learning_rate": 1e-3,
        "optim.lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4,
        "max_steps": STEPS,
        "ds.bf16.enabled": "false",
        **CASES[name].settings,
        **changes,
    }


def _train_plainly(folders: Path, name: str) -> list[float]:
    """The same batches, transformers' own loss, torch's AdamW."""
    from transformers import AutoTokenizer

    from bigft.data.build import build_data
    from bigft.data.loading.loader import Share
    from bigft.data.order.cursor import Cursor
    from bigft.data.section import DataSection
    from bigft.tasks.rows import build_rows
    from bigft.tasks.section import TaskSection
    from bigft.tasks.task import build_task

    case, path = CASES[name], folders / name
    task_settings = {key.split(".")[1]: value for key, value in case.settings.items()}
    section = DataSection(
        train=str(folders / f"{name}.jsonl"),
        max_length=32,
        packing="none",
        eval_fraction=0.1,
        loading={"cache_dir": str(folders / "cache")},
    )
    config = json.loads((path / "config.json").read_text())
    task_section = TaskSection(name=name.partition("-")[0], **task_settings)
    rows = build_rows(task_section, section, config)
    task = build_task(task_section, rows)
    data = build_data(
        section,
        tokenizer=AutoTokenizer.from_pretrained(path),
        share=Share(micro_batch_size=8),
        local_rank=0,
        eval_batch_size=1,
        seed=42,
        barrier=lambda: None,
        lay_out=rows.lay_out,
    )
    model = task.auto_class().from_pretrained(path, dtype=torch.float32)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    losses = []
    batches = data.train.steps_from(Cursor())
    for _ in range(STEPS):
        batch = next(batches).micro_batches[0]
        loss = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            labels=case.labels(batch),
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_of_plain_torch_and_the_export_scores_the_same(
    two_ranks, folders, tmp_path, name
):
    folder = tmp_path / "run"
    config = ds_config("zero3_offload")
    found = two_ranks.run("runs:train", _settings(folders, name), str(folder), config)[0]
    assert "new, from random weights" not in found["said"]
    assert read_losses(folder) == pytest.approx(_train_plainly(folders, name), rel=2e-4)
    # Half the steps and then the rest, from the checkpoint, are the same run.
    half = tmp_path / "half"
    first = _settings(folders, name, max_steps=STEPS // 2)
    two_ranks.run("runs:train", first, str(half), config)
    two_ranks.run("runs:train", _settings(folders, name), str(half), config)
    assert read_losses(half) == pytest.approx(read_losses(folder), rel=1e-6)
    _check_export(folders, name, folder)


CONFIGS = ("zero2", "zero2_offload", "zero3", "zero3_nvme")


def _list_matrix() -> list[Any]:
    """Every task under every other config; by day each task and each config once or twice."""
    return [
        pytest.param(name, config, marks=[] if (i + j) % 4 == 0 else [pytest.mark.nightly])
        for i, name in enumerate(CASES)
        for j, config in enumerate(CONFIGS)
    ]


@pytest.mark.parametrize(("name", "config"), _list_matrix())
def test_losses_do_not_depend_on_stage_and_offload(two_ranks, folders, tmp_path, name, config):
    settings = _settings(folders, name)
    if config == "zero3_nvme":
        for part in ("offload_optimizer", "offload_param"):
            settings[f"ds.zero_optimization.{part}.nvme_path"] = tmp_path / "nvme"
    two_ranks.run("runs:train", settings, str(tmp_path / "run"), ds_config(config))
    assert read_losses(tmp_path / "run") == pytest.approx(_train_plainly(folders, name), rel=2e-4)


def _check_export(folders: Path, name: str, folder: Path) -> None:
    """What transformers loads from the export scores the held-out rows as the run did."""
    from transformers import AutoConfig, AutoTokenizer

    from bigft.data.build import build_evaluation
    from bigft.data.loading.loader import Share
    from bigft.data.section import DataSection
    from bigft.evaluation.loop import evaluate, keep_rows, stay_alone
    from bigft.tasks.rows import build_rows
    from bigft.tasks.section import TaskSection
    from bigft.tasks.task import build_task, find_task

    config = json.loads((folder / "model/config.json").read_text())
    kind = name.partition("-")[0]
    assert find_task(config) == kind
    task_settings = {key.split(".")[1]: value for key, value in CASES[name].settings.items()}
    section = DataSection(
        train=str(folders / f"{name}.jsonl"),
        max_length=32,
        packing="none",
        loading={"cache_dir": str(folders / "cache")},
    )
    task_section = TaskSection(name=kind, **task_settings)
    rows = build_rows(task_section, section, config)
    task = build_task(task_section, rows)
    model = task.auto_class().from_pretrained(folder / "model").eval()
    card = (folder / "model/README.md").read_text()
    assert f"model = {task.auto_class().__name__}.from_pretrained" in card
    assert type(model).__name__ == AutoConfig.from_pretrained(folder / "model").architectures[0]
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    loader, _, _ = build_evaluation(
        section, tokenizer=tokenizer, share=Share(1), lay_out=rows.lay_out
    )
    scores = evaluate(
        task,
        model,
        loader.eval_batches(),
        device=torch.device("cpu"),
        sum_over_ranks=stay_alone,
        gather=keep_rows,
    )
    # All rows here, the held-out ones there: the metrics have the same names.
    last = [row for row in read_metrics(folder) if "eval_loss" in row][-1]
    assert {f"eval_{key}" for key in scores} == last.keys() - {"step"}
    assert scores["loss"] < 20


@pytest.mark.parametrize("ranks", ["one_rank", "two_ranks"])
def test_a_new_head_starts_the_same_on_every_rank(request, folders, tmp_path, ranks):
    """The body comes from the files; the head is new, is said, and does not depend on ranks."""
    pool = request.getfixturevalue(ranks)
    size = {"one_rank": 8, "two_ranks": 4}[ranks]
    settings = _settings(folders, "classification", model=folders / "masked_lm", max_steps=2)
    settings |= {"per_device_train_batch_size": size}
    found = pool.run("runs:train", settings, str(tmp_path / "run"), ds_config("zero3"))[0]
    said = found["said"]
    assert "new, from random weights: bert.pooler.dense.bias" in said
    assert "classifier.weight" in said
    assert "in the files, and left out: cls.predictions" in said
    losses = read_losses(tmp_path / "run")
    # One rank comes first: what it has found is what two have to find.
    kept = folders / "new_head.json"
    if ranks == "one_rank":
        kept.write_text(json.dumps(losses))
    assert losses == pytest.approx(json.loads(kept.read_text()), rel=1e-5)


def test_a_head_of_another_size_is_replaced(one_rank, folders, tmp_path):
    settings = _settings(folders, "classification", model=folders / "regression", max_steps=1)
    found = one_rank.run("runs:train", settings, str(tmp_path / "run"), ds_config("zero3"))[0]
    assert "new, from random weights: classifier.bias, classifier.weight" in found["said"]
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dog", "2": "none"}

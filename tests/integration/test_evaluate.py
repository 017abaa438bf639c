"""Finished models scored and compared: some that have learned, and some that have not."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from making import WORDS, llama_config, make_tokenizer

from bigft.cli import main

ROWS = 12
SIZE = ("--max_new_tokens", 24)
METRICS = "bleu,chrf,rouge,exact_match,f1"


def _build_examples() -> list[tuple[str, str]]:
    chooser = random.Random(0)
    # Each begins with a word of its own.
    questions = [" ".join([word, *chooser.choices(WORDS, k=2)]) for word in WORDS[:ROWS]]
    return [(question, " ".join(chooser.choices(WORDS, k=6))) for question in questions]


def _learn(model: Any, batch: dict[str, Any], steps: int, folder: Path) -> None:
    """Train on one batch, and leave the model with its final loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        loss = model.eval()(**batch).loss
    assert loss.item() < 0.1
    model.save_pretrained(folder)
    (folder / "loss.json").write_text(str(loss.item()))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`llama/` and `t5/`, which know all answers by heart; `llama_new/`, `t5_new/`; data."""
    root = tmp_path_factory.mktemp("evaluate")
    rows = _build_examples()
    records = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in rows
    ]
    (root / "qa.jsonl").write_text("\n".join(map(json.dumps, records)))
    (root / "first.jsonl").write_text("\n".join(map(json.dumps, records[:4])))
    (root / "rest.jsonl").write_text("\n".join(map(json.dumps, records[4:])))
    pairs = [{"prompt": q, "completion": a} for q, a in rows]
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    _make_llamas(root, records)
    _make_t5s(root, rows)
    return root


def _make_llamas(root: Path, records: list[dict[str, Any]]) -> None:
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config())
    model.save_pretrained(root / "llama_new")
    tokenizer = make_tokenizer(root / "llama_new")
    texts = [tokenizer.apply_chat_template(r["messages"], tokenize=False) for r in records]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    _learn(
        model, {**batch_of(batch), "labels": _hide_prompts(labels, tokenizer)}, 300, root / "llama"
    )
    make_tokenizer(root / "llama")


def batch_of(batch: Any) -> dict[str, Any]:
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def _hide_prompts(labels: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """Leave only the answers: what stands behind the second `<|im_start|>`."""
    starts = (labels == tokenizer.convert_tokens_to_ids("<|im_start|>")).cumsum(1)
    return labels.masked_fill(starts < 2, -100)


def _make_t5s(root: Path, rows: list[tuple[str, str]]) -> None:
    from task_rows import t5_config
    from transformers import T5ForConditionalGeneration

    torch.manual_seed(0)
    model = T5ForConditionalGeneration(t5_config(initializer_factor=0.5))
    model.save_pretrained(root / "t5_new")
    tokenizer = make_tokenizer(root / "t5_new")
    ends = [[f"{text}<|endoftext|>" for text in column] for column in zip(*rows, strict=True)]
    source, target = (
        tokenizer(c, return_tensors="pt", padding=True, padding_side="right") for c in ends
    )
    labels = target.input_ids.masked_fill(target.attention_mask == 0, -100)
    _learn(model, {**batch_of(source), "labels": labels}, 400, root / "t5")
    make_tokenizer(root / "t5")


@pytest.fixture
def evaluate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*words: Any) -> dict[str, Any]:
        main(["evaluate", *map(str, words), "--max_length", "64", "--json"])
        out, _ = capsys.readouterr()
        return dict(json.loads(out))

    return run


@pytest.mark.parametrize(("name", "data"), [("llama", "qa"), ("t5", "pairs")])
def test_what_was_learned_by_heart_is_answered(
    evaluate: Any, folders: Path, name: str, data: str
) -> None:
    words = ("--data", folders / f"{data}.jsonl", "--metrics", METRICS, "--batch_size", 5, *SIZE)
    found = evaluate(folders / name, *words)
    assert found["examples"] == found["rows"] == ROWS
    ones = ("exact_match", "f1", "rouge1", "rouge2", "rougeL")
    assert [found[key] for key in ones] == [1.0] * 5
    assert (found["bleu"], found["chrf"]) == (pytest.approx(100), pytest.approx(100))
    if name == "t5":  # The other one has also learned to begin its turn.
        expected = float((folders / name / "loss.json").read_text())
        assert found["loss"] == pytest.approx(expected, rel=1e-4)
    assert found["bleu_signature"].startswith("nrefs:1|case:mixed")
    before = evaluate(folders / f"{name}_new", *words)
    assert before["exact_match"] == 0
    assert before["bleu"] < 20


def test_two_models_side_by_side(evaluate: Any, folders: Path) -> None:
    words = ("--data", folders / "qa.jsonl", "--metrics", "bleu,chrf,f1", *SIZE)
    found = evaluate("--compare", folders / "llama_new", folders / "llama", *words)
    assert (found["a"]["model"], found["b"]["model"]) == (
        str(folders / "llama_new"),
        str(folders / "llama"),
    )
    assert found["differences"].keys() == {"loss", "bleu", "f1"}
    for name, one in found["differences"].items():
        assert one["a"] == pytest.approx(found["a"][name], rel=1e-5)
        assert one["difference"] == pytest.approx(one["b"] - one["a"])
        assert one["low"] <= one["difference"] <= one["high"]
        assert one["examples"] == ROWS
        # It is better beyond doubt: the interval does not hold 0.
        assert one["low"] * one["high"] > 0
    assert found["differences"]["loss"]["share_b_larger"] == 0
    assert found["differences"]["f1"]["share_b_larger"] == 1
    again = evaluate(folders / "llama_new", "--compare", folders / "llama", *words)
    assert again == found


def test_a_fixed_part_is_answered_and_parts_have_values_of_their_own(
    evaluate: Any, folders: Path
) -> None:
    data = f"{folders}/first.jsonl,{folders}/rest.jsonl"
    found = evaluate(folders / "llama", "--data", data, "--metrics", "f1,bleu")
    assert found["examples"] == ROWS
    assert {"f1/first", "f1/rest", "loss/first", "loss/rest"} <= found.keys()
    few = evaluate(folders / "llama", "--data", data, "--metrics", "f1", "--max_examples", 5)
    assert (few["examples"], few["rows"], few["f1"]) == (5, ROWS, 1.0)
    brief = evaluate(folders / "llama", "--data", data, "--metrics", "f1", "--max_seconds", 1e-9)
    assert brief["examples"] == 1


def test_the_table_for_people(
    folders: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = ["--data", str(folders / "qa.jsonl"), "--max_length", "64"]
    main(["evaluate", "--compare", str(folders / "llama_new"), str(folders / "llama"), *data])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"A  {folders / 'llama_new'}"
    assert lines[1] == f"B  {folders / 'llama'}"
    assert lines[4].startswith("loss")
    assert lines[4].endswith(str(ROWS))
    assert [line.split()[0] for line in lines[5:]] == ["perplexity", "token_accuracy"]


def test_classifiers_part_by_part_and_side_by_side(evaluate: Any, tmp_path: Path) -> None:
    from task_rows import bert_config
    from transformers import BertForSequenceClassification

    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        config = bert_config(id2label={0: "cat", 1: "dog"})
        BertForSequenceClassification(config).save_pretrained(tmp_path / name)
        make_tokenizer(tmp_path / name)
    chooser = random.Random(0)
    sizes = {"few": 6, "more": 15}
    for name, size in sizes.items():
        rows = [
            {"text": " ".join(chooser.choices(WORDS, k=5)), "label": chooser.choice(["cat", "dog"])}
            for _ in range(size)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = ("--data", f"{tmp_path}/few.jsonl,{tmp_path}/more.jsonl", "--batch_size", 4)
    found = evaluate(tmp_path / "a", *data)
    parts = [found[f"accuracy/{name}"] * size for name, size in sizes.items()]
    assert sum(parts) / 21 == pytest.approx(found["accuracy"])
    both = evaluate("--compare", tmp_path / "a", tmp_path / "b", *data)
    assert both["differences"].keys() == {"loss", "accuracy"}
    assert both["a"].pop("model") == found.pop("model")
    assert both["a"] == pytest.approx(found, rel=1e-5)
    accuracy = both["differences"]["accuracy"]
    assert (accuracy["a"], accuracy["examples"]) == (pytest.approx(found["accuracy"]), 21)

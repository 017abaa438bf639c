"""Answers that the model writes during training, held against transformers alone."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from making import VOCAB, WORDS, llama_config, make_messages, make_tokenizer
from small_runs import ds_config, read_losses, read_metrics, small_settings
from task_rows import t5_config

pytestmark = pytest.mark.distributed

ROWS, NEW_TOKENS = 7, 12
# What ends a turn is among them.
ENDS = [*range(0, VOCAB, 5), 2]
METRICS = "bleu,chrf,rouge,exact_match,f1"
NAMES = {"bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match", "f1", "examples"}


def _make_llama() -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(llama_config(initializer_range=0.3))


def _make_gpt2() -> Any:
    """Its positions are a table: a place behind its end is an error."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = dict(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=VOCAB)
    return GPT2LMHeadModel(GPT2Config(**sizes, eos_token_id=0, initializer_range=0.3))


def _make_t5() -> Any:
    from transformers import T5ForConditionalGeneration

    return T5ForConditionalGeneration(t5_config(initializer_factor=2.0))


MODELS = {"llama": _make_llama, "gpt2": _make_gpt2, "t5": _make_t5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of which every fifth token ends an answer, so that ranks end at different times."""
    root = tmp_path_factory.mktemp("answers")
    for name, make in MODELS.items():
        torch.manual_seed(3)
        model = make()
        model.generation_config.eos_token_id = ENDS
        model.save_pretrained(root / name)
        make_tokenizer(root / name)
    make_messages(root / "chat.jsonl")
    chooser = random.Random(0)
    pairs = [
        {"source": " ".join(chooser.choices(WORDS, k=chooser.randint(2, 12))), "target": "the cat"}
        for _ in range(64)
    ]
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return root


def _settings(folders: Path, name: str, **changes: Any) -> dict[str, Any]:
    is_t5 = name == "t5"
    return small_settings(
        folders,
        **{
            "model": folders / name,
            "task": "seq2seq" if is_t5 else "causal_lm",
            "data": folders / ("pairs.jsonl" if is_t5 else "chat.jsonl"),
            "data.eval_fraction": 0.2,
            # Answers stay as different as those of random weights are.
            "learning_rate": 1e-5,
            "max_steps": 2,
            "eval_steps": 2,
            "ds.bf16.enabled": "false",
            "evaluation.metrics": METRICS,
            "evaluation.generate_rows": ROWS,
            "evaluation.generate_seconds": "none",
            "evaluation.max_new_tokens": NEW_TOKENS,
            "evaluation.per_device_eval_batch_size": 2,
            **changes,
        },
    )


def _answer_plainly(folder: Path, prompts: list[list[int]]) -> list[str]:
    """What transformers' own `generate` writes, one prompt at a time."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    is_t5 = AutoConfig.from_pretrained(folder).is_encoder_decoder
    auto = AutoModelForSeq2SeqLM if is_t5 else AutoModelForCausalLM
    model, tokenizer = auto.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float32
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        output = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS
        )
        tokens = output[0, 1 if is_t5 else len(prompt) :].tolist()
        if tokens[-1] in ENDS:
            tokens.pop()
        found.append(tokenizer.decode(tokens, skip_special_tokens=True))
    return found


@pytest.mark.parametrize("name", ["llama", "t5", pytest.param("gpt2", marks=pytest.mark.nightly)])
def test_answers_are_those_of_transformers_whatever_the_number_of_ranks(
    one_rank, two_ranks, folders, tmp_path, name
):
    answers = {}
    for pool, size in ((one_rank, 4), (two_ranks, 2)):
        folder = tmp_path / str(pool.world_size)
        settings = _settings(folders, name, per_device_train_batch_size=size)
        results = pool.run("answer_runs:train", settings, str(folder), ds_config("zero3"))
        assert all(found["answers"] == results[0]["answers"] for found in results)
        answers[pool.world_size] = results[0]["answers"]
        rows = [row for row in read_metrics(folder) if "eval_loss" in row]
        assert [row["step"] for row in rows] == [0, 2]
        assert all({f"eval_{key}" for key in NAMES} <= row.keys() for row in rows)
        assert [row["eval_examples"] for row in rows] == [ROWS] * 2
    # The first answers of both runs are those of the same weights.
    assert answers[1][0] == answers[2][0]
    last = answers[2][-1]
    assert [row[:2] for row in last] == [row[:2] for row in answers[2][0]]
    prompts = [row[0] for row in last]
    lengths = {len(prompt) for prompt in prompts}
    assert len(lengths) > 1
    plain = _answer_plainly(tmp_path / "2/model", prompts)
    assert [row[2] for row in last] == plain
    assert len(set(plain)) > 1
    assert [row[2] for row in answers[1][-1]] == _answer_plainly(tmp_path / "1/model", prompts)


@pytest.mark.parametrize("name", ["t5", pytest.param("llama", marks=pytest.mark.nightly)])
def test_a_run_with_answers_trains_as_one_without(two_ranks, folders, tmp_path, name):
    with_answers = _settings(folders, name, max_steps=6)
    plain = {k: v for k, v in with_answers.items() if not k.startswith("evaluation.")}
    gathers = [
        two_ranks.run("answer_runs:count_gathers", settings, str(tmp_path / kind), config)[0]
        for kind, settings in (("with", with_answers), ("without", plain))
        for config in [ds_config("zero3")]
    ]
    assert read_losses(tmp_path / "with") == read_losses(tmp_path / "without")
    # The first step after answers may have to learn anew which parameters come when.
    assert gathers[0][1::2] == gathers[1][1::2], gathers


def test_one_rank_that_is_late_ends_the_answers_of_all(two_ranks, folders, tmp_path):
    settings = _settings(folders, "llama", max_steps=1, **{"evaluation.generate_seconds": 3600})
    results = two_ranks.run(
        "answer_runs:train_with_a_slow_clock", settings, str(tmp_path), ds_config("zero3")
    )
    # One batch of two on each rank.
    assert [len(written) for written in results[0]["answers"]] == [4, 4]
    rows = [row for row in read_metrics(tmp_path) if "eval_loss" in row]
    assert [row["eval_examples"] for row in rows] == [4, 4]
    assert "4 of 7 answers were written" in results[0]["said"]


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.nightly)])
def test_a_stop_in_the_middle_of_an_answer(two_ranks, folders, tmp_path, rank):
    settings = _settings(folders, "llama", max_steps=4, **{"evaluation.eval_on_start": "false"})
    arguments = (settings, str(tmp_path / "run"), ds_config("zero3"))
    stopped = two_ranks.run("answer_runs:stop_in_answer", *arguments, rank, 2)
    kinds, texts, passes = zip(*stopped, strict=True)
    assert kinds == ("StoppedError",) * 2
    assert all("stopped by SIGUSR1 at step 2 of 4, committed" in text for text in texts)
    # The request came in the second pass; the ranks know of it one or two passes later.
    assert passes[0] == passes[1] <= 4
    two_ranks.run("runs:train", *arguments)
    two_ranks.run("runs:train", settings, str(tmp_path / "whole"), ds_config("zero3"))

    def read(run: str) -> list[Any]:
        rows = [row for row in read_metrics(tmp_path / run) if "eval_loss" in row]
        return [{name: row[name] for name in ("step", "eval_loss", "eval_f1")} for row in rows]

    assert read("run") == read("whole")


def test_a_metric_of_answers_decides(two_ranks, folders, tmp_path):
    goals = {
        "checkpoint.best": "eval_rouge1",
        "trainer.early_stopping": "chrf:9",
        "save_steps": 2,
        "max_steps": 4,
    }
    settings = _settings(folders, "llama", **goals)
    found = two_ranks.run("answer_runs:train", settings, str(tmp_path / "a"), ds_config("zero3"))
    assert "eval_rouge1, larger is better" in found[0]["said"]
    assert "without a better eval_chrf, larger is better" in found[0]["said"]
    best = [row for row in read_metrics(tmp_path / "a") if "eval_loss" in row][1:]
    step = max(best, key=lambda row: (row["eval_rouge1"], -row["step"]))["step"]
    assert found[0]["checkpoint"].endswith(f"step_{step:08d}")
    settings = _settings(folders, "llama", **{**goals, "checkpoint.best": "rouge3"})
    found = two_ranks.run("runs:try_train", settings, str(tmp_path / "b"), ds_config("zero3"))
    kind, text, code = found[0]
    assert (kind, code) == ("ConfigError", 2)
    assert "gives no rouge3; did you mean rouge" in text
    assert "rouge1, rouge2, rougeL, exact_match, f1" in text

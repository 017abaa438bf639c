"""A slice has the run's widths and its own number of layers; what it measures adds up."""

import json
from dataclasses import replace

import pytest
import torch

from bigft.probe import slice as parent
from bigft.probe.slice import SliceError, SliceJob, measure_slice, shrink
from bigft.probe.slice_child import Slice, check_room

LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 512,
    "tie_word_embeddings": True,
}
BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "vocab_size": 100,
}
T5 = {
    "model_type": "t5",
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 4,
    "num_decoder_layers": 3,
    "num_heads": 2,
    "vocab_size": 100,
    "decoder_start_token_id": 0,
}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 6, "n_head": 2, "vocab_size": 100}
QWEN3 = {**LLAMA, "model_type": "qwen3", "head_dim": 64, "num_hidden_layers": 5}
MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "hidden_size": 32}
JOB = SliceJob(LLAMA, "causal_lm", 512, 4, "none", precision="fp32", seconds=0.0)


def test_only_the_number_of_layers_changes():
    config = {
        "num_hidden_layers": 4,
        "layer_types": ["full", "sliding", "full", "sliding"],
        "hidden_size": 4,
        "sizes": [1, 2, 3, 4],
        "text_config": {"n_layer": 6},
    }
    assert shrink(config, 2) == {
        **config,
        "num_hidden_layers": 2,
        "layer_types": ["full", "sliding"],
        "text_config": {"n_layer": 2},
    }
    assert shrink({"num_layers": 4, "num_decoder_layers": 3, "d_model": 2}, 1) == {
        "num_layers": 1,
        "num_decoder_layers": 1,
        "d_model": 2,
    }


@pytest.mark.parametrize(
    ("config", "task"),
    [
        (LLAMA, "causal_lm"),
        (GPT2, "causal_lm"),
        (QWEN3, "distillation"),
        (MIXTRAL, "causal_lm"),
        (BERT, "masked_lm"),
        (BERT, "classification"),
        (T5, "seq2seq"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["model_type"],
)
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_every_kind_of_model_takes_a_step(config, task, checkpointing):
    job = replace(JOB, config=config, task=task, length=16, rows=2, checkpointing=checkpointing)
    sizes = []
    for layers in (1, 2):
        model = Slice(job, layers, torch.device("cpu"))
        assert model.step() > 0
        named = dict(model._module.named_parameters())
        gradients = {name for name, p in named.items() if p.grad is not None}
        # A pooler that masked language models do not use, and such.
        assert len(gradients) > 0.8 * len(named)
        sizes.append(model.bytes)
    stacks = 2 if task == "seq2seq" else 1
    whole = Slice(replace(job, config=shrink(config, 3)), 3, torch.device("cpu"))
    assert whole.bytes - sizes[1] == sizes[1] - sizes[0] > 0, stacks


@pytest.mark.nightly
def test_measured_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setenv("RANK", "7")
    job = replace(JOB, rows=2, length=128)
    found = {name: measure_slice(replace(job, checkpointing=name)) for name in ("none", "full")}
    for one in found.values():
        assert 0 < one.seconds_per_layer < 60
        assert one.seconds_outside >= 0
        # fp32 logits and their gradient.
        assert one.bytes_outside > 4 * 256 * LLAMA["vocab_size"]
    # All that is kept is a layer's input; else about 10 tensors of that width, and 4 of the MLP's.
    width = 4 * 256 * LLAMA["hidden_size"]
    assert found["full"].activation_bytes_per_layer == pytest.approx(width, rel=0.1)
    assert 12 * width < found["none"].activation_bytes_per_layer < 30 * width


def test_what_would_not_fit_says_so():
    job = replace(JOB, config={**LLAMA, "vocab_size": 10**10})
    with pytest.raises(ValueError, match="GB are free"):
        check_room(job, torch.device("cpu"))


@pytest.mark.parametrize("changes", [{"task": "multitask"}, {"config": {"model_type": "nobody"}}])
def test_unknown_models_are_refused(changes):
    with pytest.raises((ValueError, KeyError), match="multitask|nobody"):
        Slice(replace(JOB, **changes), 1, torch.device("cpu"))


def test_a_process_that_fails_says_why():
    with pytest.raises(SliceError, match="^no slices of multitask$"):
        measure_slice(replace(JOB, task="multitask"))


def test_it_does_not_take_for_ever(monkeypatch):
    monkeypatch.setattr(parent, "_TIMEOUT_SECONDS", 0.1)
    with pytest.raises(SliceError, match="longer than"):
        measure_slice(JOB)


def test_a_slice_is_known_by_what_it_was_measured_with():
    assert replace(JOB, seconds=9.0).name == JOB.name
    assert replace(JOB, config=json.loads(json.dumps(LLAMA))).name == JOB.name
    for change in ({"length": 256}, {"checkpointing": "full"}, {"config": BERT}, {"threads": 2}):
        assert replace(JOB, **change).name != JOB.name

"""Values of a model's config, set by the user."""

import json
from typing import Any

import pytest
from making import llama_config

from bigft.cli import parse
from bigft.errors import ConfigError
from bigft.models.facts import BUILTIN_MODELS, read_facts
from bigft.models.load import build_config
from bigft.models.overrides import override
from bigft.models.section import ModelSection
from bigft.run.resolve import resolve


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("attention_dropout", "0.1", 0.1),
        ("attention_dropout", 0.1, 0.1),
        ("attention_dropout", "0", 0.0),
        ("attention_bias", "True", True),
        ("attention_bias", False, False),
        ("rms_norm_eps", "1e-5", 1e-5),
        ("hidden_act", "gelu", "gelu"),
        ("pretraining_tp", "2", 2),
    ],
)
def test_a_value_gets_the_type_of_the_one_before(name, text, expected):
    config = override(llama_config(), {name: text})
    found = getattr(config, name)
    assert (found, type(found)) == (expected, type(expected))


def test_rotary_parameters_are_found_where_they_are():
    config = llama_config()
    before = dict(config.rope_parameters)
    override(config, {"rope_theta": "500000"})
    assert config.rope_parameters == {**before, "rope_theta": 500000.0}


def test_another_name_of_a_value_is_known():
    from transformers import T5Config

    assert override(T5Config(), {"dropout_rate": "0.3"}).dropout_rate == 0.3
    raw = BUILTIN_MODELS["builtin/t5"]
    config = override(T5Config(**raw), {"hidden_size": "64"}, raw)
    assert config.d_model == 64


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("atention_dropout", "0.1", "did you mean --model.config.attention_dropout?"),
        ("zzz", "1", "LlamaConfig has no such value; it has attention_bias, attention_dropout,"),
        ("attention_dropout", "much", "must be a number (it is 0)"),
        ("attention_dropout", "true", "must be a number (it is 0)"),
        ("attention_bias", "0.5", "must be true or false (it is false)"),
        ("num_labels", "3", "is not set here: use --task.labels"),
        ("dtype", "float32", "is not set here: use --ds.bf16.enabled"),
        ("rope_parameters", "7", "must be JSON of the same kind as"),
        ("num_hidden_layers", "1.5", "--model.config.num_hidden_layers 1.5: Validation error"),
    ],
)
def test_what_cannot_be_set_is_said(name, value, text):
    with pytest.raises(ConfigError) as caught:
        override(llama_config(), {name: value})
    assert f"--model.config.{name} {value}" in str(caught.value)
    assert text in str(caught.value)


def test_all_problems_are_named_together():
    with pytest.raises(ConfigError) as caught:
        override(llama_config(), {"zzz": "1", "attention_bias": "x", "attention_dropout": "0.1"})
    assert "zzz" in str(caught.value)
    assert "attention_bias" in str(caught.value)


def test_sizes_of_a_model_with_random_weights_follow(tmp_path):
    section = ModelSection(name="builtin", config={"hidden_size": "96", "num_hidden_layers": "2"})
    facts = read_facts(section)
    assert (facts.hidden_size, facts.num_layers) == (96, 2)
    config = build_config(section, facts, 4096)
    assert (config.hidden_size, config.head_dim, config.num_hidden_layers) == (96, 16, 2)
    # A file without weights beside it is the same.
    (tmp_path / "config.json").write_text(json.dumps(BUILTIN_MODELS["builtin"]))
    section = ModelSection(name=str(tmp_path / "config.json"), config=section.config)
    assert build_config(section, read_facts(section), 4096).head_dim == 16


def test_sizes_that_do_not_go_together_are_refused():
    section = ModelSection(name="builtin", config={"num_attention_heads": "5"})
    with pytest.raises(ConfigError, match="--model.config.num_attention_heads 5: .*multiple"):
        build_config(section, read_facts(section), 4096)


def test_flags_and_recipes_set_values(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model:\n  config:\n    attention_dropout: 0.1\n    hidden_act: gelu\n")
    line = [
        "train",
        "--config",
        "ds_configs/zero3.json",
        "--recipe",
        str(recipe),
        "--model.config.attention_dropout",
        "0.2",
    ]
    found: dict[str, Any] = resolve(parse(line), {}).run.model.config
    assert {**found, "attention_dropout": float(found["attention_dropout"])} == {
        "attention_dropout": 0.2,
        "hidden_act": "gelu",
    }

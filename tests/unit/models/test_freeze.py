"""Which parameters are not trained."""

import pytest
from making import llama_config

from bigft.errors import ConfigError
from bigft.models.freeze import freeze
from bigft.models.load import count_parameters


def _make(**changes):
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(llama_config(**changes))


def _list_frozen(model):
    return {name for name, p in model.named_parameters() if not p.requires_grad}


def test_patterns_are_searched_in_names():
    model = _make()
    note = freeze(model, ["^model.embed_tokens", r"layers\.[0-0]\."])
    frozen = _list_frozen(model)
    assert "model.embed_tokens.weight" in frozen
    assert all(n.startswith(("model.embed_tokens", "model.layers.0.")) for n in frozen)
    assert len(frozen) == 10
    left = count_parameters(model, trained=True)
    total = count_parameters(model)
    assert note == (
        r"frozen by --model.freeze ^model.embed_tokens,layers\.[0-0]\.: 10 of 21 tensors,"
        f" {total - left:,} of {total:,} parameters ({1 - left / total:.1%})"
    )


def test_a_tied_parameter_has_both_names():
    model = _make(tie_word_embeddings=True)
    freeze(model, ["^lm_head"])
    assert _list_frozen(model) == {"model.embed_tokens.weight"}
    assert not model.lm_head.weight.requires_grad


def test_a_pattern_without_a_match_is_answered_with_names():
    model = _make()
    with pytest.raises(ConfigError) as caught:
        freeze(model, ["embed", "encoder", "decoder"])
    text = str(caught.value)
    assert "--model.freeze encoder: matches no parameter. There are 21 names, such as" in text
    assert "--model.freeze decoder" in text
    assert "model.embed_tokens.weight" in text
    assert "model.layers.1." in text
    assert _list_frozen(model) == set()


def test_something_must_be_left_to_train():
    with pytest.raises(ConfigError, match="--model.freeze .: matches all 21 parameters"):
        freeze(_make(), ["."])

"""Learning rates by depth."""

from typing import Any, get_args

import pytest
import torch
from making import llama_config
from task_rows import bert_config, t5_config
from torch import nn

from bigft.errors import ConfigError
from bigft.optim.groups import build_groups
from bigft.optim.layers import find_depths, split_by_depth
from bigft.optim.schedule import build_schedule
from bigft.optim.section import OptimSection

NAMES = get_args(OptimSection.model_fields["lr_scheduler_type"].annotation)


def _depths(model: nn.Module) -> dict[str, int]:
    depths = find_depths(model)
    return {name: depths.of[id(p)] for name, p in model.named_parameters()}


def _llama(**changes: Any) -> nn.Module:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(llama_config(**changes))


def test_a_decoder():
    found = _depths(_llama())
    assert found["model.embed_tokens.weight"] == 0
    assert found["model.layers.0.mlp.up_proj.weight"] == 1
    assert found["model.layers.1.input_layernorm.weight"] == 2
    assert found["model.norm.weight"] == found["lm_head.weight"] == 3
    # Of a tied table the lower place counts.
    assert _depths(_llama(tie_word_embeddings=True))["model.embed_tokens.weight"] == 0


def test_an_encoder_with_a_head():
    from transformers import BertForSequenceClassification

    found = _depths(BertForSequenceClassification(bert_config()))
    assert {d for n, d in found.items() if n.startswith("bert.embeddings")} == {0}
    assert found["bert.encoder.layer.1.output.dense.bias"] == 2
    assert found["bert.pooler.dense.weight"] == found["classifier.bias"] == 3


def test_a_decoder_is_above_its_encoder():
    from transformers import T5ForConditionalGeneration

    found = _depths(T5ForConditionalGeneration(t5_config()))
    assert found["shared.weight"] == 0
    assert found["encoder.block.1.layer.0.SelfAttention.q.weight"] == 2
    assert found["encoder.final_layer_norm.weight"] == 2
    assert found["decoder.block.0.layer.1.EncDecAttention.q.weight"] == 3
    assert found["decoder.final_layer_norm.weight"] == 5


def test_experts_are_of_their_layer():
    layer = nn.Module()
    layer.experts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model = nn.Module()
    model.table = nn.Embedding(4, 2)
    model.layers = nn.ModuleList([layer])
    model.head = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert sorted(_depths(model).items()) == [
        *((f"head.{n}.{kind}", 2) for n in (0, 1) for kind in ("bias", "weight")),
        *((f"layers.0.experts.{n}.{kind}", 1) for n in (0, 1) for kind in ("bias", "weight")),
        ("table.weight", 0),
    ]


def test_a_model_without_layers_is_refused():
    with pytest.raises(ConfigError, match="--model.layer_decay: Linear has no list of layers"):
        find_depths(nn.Linear(2, 2))


def test_groups_have_one_rate_each_and_every_parameter_once():
    model = _llama()
    before = build_groups(model, 0.1)
    groups = split_by_depth(before, find_depths(model), 1e-3, 0.5)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [
        (1e-3, 0.1), (1e-3, 0.0), (5e-4, 0.1), (5e-4, 0.0), (2.5e-4, 0.1), (2.5e-4, 0.0),
        (1.25e-4, 0.1),
    ]  # fmt: skip
    kept = [id(p) for group in groups for p in group["params"]]
    assert sorted(kept) == sorted(id(p) for group in before for p in group["params"])


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_keeps_the_ratios(name):
    given = {"polynomial": {"lr_end": 1e-5}, "cosine_with_min_lr": {"min_lr": 1e-4}}.get(name, {})
    section = OptimSection(
        learning_rate=1e-3, lr_scheduler_type=name, warmup_steps=3, lr_scheduler_kwargs=given
    )
    model = _llama()
    groups = split_by_depth(build_groups(model, 0.1), find_depths(model), 1e-3, 0.5)
    factors = [group["lr"] / 1e-3 for group in groups]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    schedule = build_schedule(section, optimizer, 12)
    for _ in range(12):
        rates = schedule.get_last_lr()
        assert rates == pytest.approx([rates[0] * factor for factor in factors])
        optimizer.step()
        schedule.step()

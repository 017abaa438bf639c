"""Which parameters are decayed."""

import pytest
import torch
from making import VOCAB, llama_config
from torch import nn

from bigft.optim.groups import build_groups


def _names(module: nn.Module, weight_decay: float = 0.1) -> dict[float, list[str]]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        group["weight_decay"]: [names[id(p)] for p in group["params"]]
        for group in build_groups(module, weight_decay)
    }


def test_norms_and_biases_of_gpt2_are_not_decayed():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16, n_positions=8))
    found = _names(model)
    assert found[0.1] == [
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "transformer.h.0.attn.c_attn.weight",
        "transformer.h.0.attn.c_proj.weight",
        "transformer.h.0.mlp.c_fc.weight",
        "transformer.h.0.mlp.c_proj.weight",
    ]
    assert "transformer.h.0.ln_1.weight" in found[0.0]
    assert "transformer.h.0.attn.c_attn.bias" in found[0.0]
    assert len(found[0.0]) + len(found[0.1]) == len(list(model.parameters()))


@pytest.mark.parametrize("tied", [False, True])
def test_tied_weights_come_once(tied):
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(llama_config(tie_word_embeddings=tied))
    groups = build_groups(model, 0.1)
    parameters = [p for group in groups for p in group["params"]]
    assert len({id(p) for p in parameters}) == len(parameters)
    tables = [p for p in parameters if p.shape == (VOCAB, 48)]
    assert len(tables) == (1 if tied else 2)
    assert all(any(t is p for p in groups[0]["params"]) for t in tables), "embeddings are decayed"
    assert torch.optim.AdamW(groups).param_groups[1]["weight_decay"] == 0.0


def test_norm_of_two_dimensions_and_partitioned_parameters():
    class PerHeadNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4, 8))

    model = nn.ModuleDict({"norm": PerHeadNorm(), "linear": nn.Linear(4, 8)})
    # Under ZeRO-3 a parameter is an empty vector that remembers its shape.
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    assert _names(model) == {0.1: ["linear.weight"], 0.0: ["norm.scale", "linear.bias"]}


def test_frozen_parameters_and_empty_groups_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[0].requires_grad_(False)
    assert _names(model) == {0.1: ["1.weight"]}

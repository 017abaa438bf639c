"""OLMo, OLMo 2 and OLMoE."""

from dataclasses import replace

from bigft.planner.architecture.case import DECODER_TASKS, Case, Family
from bigft.planner.architecture.gated import (
    LLAMA_NORMS,
    attention,
    experts,
    finish_gated,
    gated_mlp,
    read_shape,
    whole_norms,
)
from bigft.planner.architecture.parts import linear, norms
from bigft.planner.architecture.weights import Architecture


def _olmo(case: Case) -> Architecture:
    shape = read_shape(case)
    bias = case.flag("attention_bias")
    # Its norms have no weights.
    layer = [
        *attention(shape, bias=bias, output_bias=bias),
        *gated_mlp(shape.hidden, shape.inner),
    ]
    blocks = [shape.block(layer)] * case.number("num_hidden_layers")
    return finish_gated(case, "Olmo", shape, blocks, final=[])


def _olmo2(case: Case) -> Architecture:
    shape = read_shape(case)
    bias = case.flag("attention_bias")
    layer = [
        *attention(shape, bias=bias, output_bias=bias),
        *whole_norms(shape),
        *gated_mlp(shape.hidden, shape.inner),
        *norms(("post_attention_layernorm", "post_feedforward_layernorm"), shape.hidden),
    ]
    blocks = [shape.block(layer)] * case.number("num_hidden_layers")
    return finish_gated(case, "Olmo2", shape, blocks)


def _olmoe(case: Case) -> Architecture:
    shape = read_shape(case)
    bias, count = case.flag("attention_bias"), case.number("num_experts")
    # Here they go by the width of the model, whatever `head_dim` says.
    usual = replace(shape, head_dim=shape.hidden // shape.heads)
    layer = [
        *attention(shape, bias=bias, output_bias=bias),
        *whole_norms(usual),
        *linear("mlp.gate", shape.hidden, count),
        *experts(count, shape.hidden, shape.inner),
        *norms(LLAMA_NORMS, shape.hidden),
    ]
    block = replace(
        shape.block(layer), experts=count, experts_per_token=case.number("num_experts_per_tok")
    )
    return finish_gated(case, "Olmoe", shape, [block] * case.number("num_hidden_layers"))


_OLMO = {
    "vocab_size": 50304,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "attention_bias": False,
    "tie_word_embeddings": False,
}

FAMILIES = {
    "olmo": Family(DECODER_TASKS, _olmo, _OLMO),
    "olmo2": Family(DECODER_TASKS, _olmo2, _OLMO),
    "olmoe": Family(
        ("causal_lm",),
        _olmoe,
        {
            **_OLMO,
            "hidden_size": 2048,
            "intermediate_size": 2048,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_experts_per_tok": 8,
            "num_experts": 64,
        },
        aliases={"num_local_experts": "num_experts"},
    ),
}

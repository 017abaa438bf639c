"""Cohere's Command R: one norm for attention and MLP, which run side by side."""

from bigft.planner.architecture.case import Case, Family
from bigft.planner.architecture.gated import attention, finish_gated, gated_mlp, read_shape
from bigft.planner.architecture.parts import norm
from bigft.planner.architecture.weights import Architecture, Weight


def _cohere(case: Case) -> Architecture:
    shape, bias = read_shape(case), case.flag("attention_bias")
    layer = attention(shape, bias=bias, output_bias=bias)
    if case.flag("use_qk_norm"):
        layer += [
            Weight("self_attn.q_norm.weight", (shape.heads, shape.head_dim)),
            Weight("self_attn.k_norm.weight", (shape.key_value_heads, shape.head_dim)),
        ]
    layer += [*gated_mlp(shape.hidden, shape.inner), *norm("input_layernorm", shape.hidden)]
    blocks = [shape.block(layer)] * case.number("num_hidden_layers")
    return finish_gated(case, "Cohere", shape, blocks)


FAMILIES = {
    "cohere": Family(
        ("causal_lm",),
        _cohere,
        {
            "vocab_size": 256000,
            "hidden_size": 8192,
            "intermediate_size": 22528,
            "num_hidden_layers": 40,
            "num_attention_heads": 64,
            "attention_bias": False,
            "use_qk_norm": False,
            "tie_word_embeddings": True,
        },
    ),
}

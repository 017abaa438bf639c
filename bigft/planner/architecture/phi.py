"""Phi-1 to Phi-4: first a parallel block with biases, then Llama's with joined projections."""

from dataclasses import replace

from bigft.planner.architecture.case import DECODER_TASKS, Case, Family
from bigft.planner.architecture.gated import (
    LLAMA_NORMS,
    attention,
    finish_gated,
    read_rotary_dim,
    read_shape,
    repeat_window,
)
from bigft.planner.architecture.parts import linear, norm, norms
from bigft.planner.architecture.weights import Architecture


def _phi(case: Case) -> Architecture:
    shape = read_shape(case)
    layer = attention(shape, bias=True, output_bias=True, output="dense")
    if case.flag("qk_layernorm"):
        layer += norms(
            ("self_attn.q_layernorm", "self_attn.k_layernorm"),
            shape.hidden // shape.heads,
            bias=True,
        )
    layer += [
        *linear("mlp.fc1", shape.hidden, shape.inner, bias=True),
        *linear("mlp.fc2", shape.inner, shape.hidden, bias=True),
        *norm("input_layernorm", shape.hidden, bias=True),
    ]
    block = replace(shape.block(layer), is_gated=False)
    return finish_gated(
        case,
        "Phi",
        shape,
        [block] * case.number("num_hidden_layers"),
        final=norm("final_layernorm", shape.hidden, bias=True),
        head_bias=True,
        rotary_dim=read_rotary_dim(case, shape.head_dim, 0.5),
    )


def _phi3(case: Case) -> Architecture:
    shape = read_shape(case)
    joined = shape.query_width + 2 * shape.key_width
    layer = [
        *linear("self_attn.o_proj", shape.query_width, shape.hidden),
        *linear("self_attn.qkv_proj", shape.hidden, joined),
        *linear("mlp.gate_up_proj", shape.hidden, 2 * shape.inner),
        *linear("mlp.down_proj", shape.inner, shape.hidden),
        *norms(LLAMA_NORMS, shape.hidden),
    ]
    blocks = [shape.block(layer, window=window) for window in repeat_window(case)]
    dim = read_rotary_dim(case, shape.head_dim, 1.0)
    return finish_gated(case, "Phi3", shape, blocks, rotary_dim=dim)


FAMILIES = {
    "phi": Family(
        DECODER_TASKS,
        _phi,
        {
            "vocab_size": 51200,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "qk_layernorm": False,
            "tie_word_embeddings": False,
        },
    ),
    "phi3": Family(
        DECODER_TASKS,
        _phi3,
        {
            "vocab_size": 32064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "sliding_window": None,
            "tie_word_embeddings": False,
        },
    ),
}

"""OPT: learned positions, and in the smallest sizes a table narrower than the model."""

from bigft.planner.architecture.case import DECODER_TASKS, Case, Family
from bigft.planner.architecture.parts import (
    Part,
    finish_decoder,
    linear,
    norm,
    plain_block,
    table,
    under,
)
from bigft.planner.architecture.weights import Architecture, Stack

_FIRST_POSITION = 2
"""Rows of the table of positions that no token uses."""


def _opt(case: Case) -> Architecture:
    hidden, words = case.number("hidden_size"), case.number("vocab_size")
    width = case.find_number("word_embed_proj_dim") or hidden
    positions = case.number("max_position_embeddings") + _FIRST_POSITION
    front = [
        *table("embed_tokens", words, width),
        *table("embed_positions", positions, hidden),
    ]
    if width != hidden:
        front += [*linear("project_out", hidden, width), *linear("project_in", width, hidden)]
    has_norm = case.flag("layer_norm_elementwise_affine")
    if has_norm and case.flag("do_layer_norm_before") and not case.flag("_remove_final_layer_norm"):
        front += norm("final_layer_norm", hidden, bias=True)
    base: list[Part] = [*under("model.decoder.", front), _layers(case, hidden)]
    return finish_decoder(case, "OPT", base, hidden=hidden, head_inputs=width)


def _layers(case: Case, hidden: int) -> Stack:
    heads, inner = case.number("num_attention_heads"), case.number("ffn_dim")
    bias, has_norm = case.flag("enable_bias"), case.flag("layer_norm_elementwise_affine")
    layer = [
        *linear("self_attn.k_proj", hidden, hidden, bias=bias),
        *linear("self_attn.v_proj", hidden, hidden, bias=bias),
        *linear("self_attn.q_proj", hidden, hidden, bias=bias),
        *linear("self_attn.out_proj", hidden, hidden, bias=bias),
        *(norm("self_attn_layer_norm", hidden, bias=True) if has_norm else ()),
        *linear("fc1", hidden, inner, bias=bias),
        *linear("fc2", inner, hidden, bias=bias),
        *(norm("final_layer_norm", hidden, bias=True) if has_norm else ()),
    ]
    blocks = [
        plain_block(under(f"model.decoder.layers.{number}.", layer), hidden, heads, inner)
        for number in range(case.number("num_hidden_layers"))
    ]
    return Stack("decoder", tuple(blocks))


FAMILIES = {
    "opt": Family(
        DECODER_TASKS,
        _opt,
        {
            "vocab_size": 50272,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "ffn_dim": 3072,
            "max_position_embeddings": 2048,
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": False,
            "word_embed_proj_dim": None,
            "num_attention_heads": 12,
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
            "tie_word_embeddings": True,
        },
    ),
}

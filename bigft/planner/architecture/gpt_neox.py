"""GPT-NeoX and Pythia: joined projections, parallel blocks, a quarter of each head rotated."""

from bigft.planner.architecture.case import DECODER_TASKS, Case, Family
from bigft.planner.architecture.gated import read_rotary_dim
from bigft.planner.architecture.parts import (
    Part,
    finish_decoder,
    linear,
    norm,
    norms,
    plain_block,
    rotary,
    table,
    under,
)
from bigft.planner.architecture.weights import Architecture, Stack


def _gpt_neox(case: Case) -> Architecture:
    hidden, heads = case.number("hidden_size"), case.number("num_attention_heads")
    inner, bias = case.number("intermediate_size"), case.flag("attention_bias")
    layer = [
        *norms(("input_layernorm", "post_attention_layernorm"), hidden, bias=True),
        *linear("attention.query_key_value", hidden, 3 * hidden, bias=bias),
        *linear("attention.dense", hidden, hidden, bias=bias),
        *linear("mlp.dense_h_to_4h", hidden, inner, bias=True),
        *linear("mlp.dense_4h_to_h", inner, hidden, bias=True),
    ]
    blocks = [
        plain_block(under(f"gpt_neox.layers.{number}.", layer), hidden, heads, inner)
        for number in range(case.number("num_hidden_layers"))
    ]
    base: list[Part] = [
        *table("gpt_neox.embed_in", case.number("vocab_size"), hidden),
        Stack("decoder", tuple(blocks)),
        *norm("gpt_neox.final_layer_norm", hidden, bias=True),
    ]
    dim = read_rotary_dim(case, hidden // heads, 0.25, name="rotary_pct")
    return finish_decoder(case, "GPTNeoX", base, hidden=hidden, buffers=rotary("gpt_neox.", dim))


FAMILIES = {
    "gpt_neox": Family(
        DECODER_TASKS,
        _gpt_neox,
        {
            "vocab_size": 50432,
            "hidden_size": 6144,
            "num_hidden_layers": 44,
            "num_attention_heads": 64,
            "intermediate_size": 24576,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
}

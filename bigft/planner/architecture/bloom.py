"""BLOOM: a norm after the embeddings, positions by a slope on the attention."""

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


def _bloom(case: Case) -> Architecture:
    hidden, heads = case.number("hidden_size"), case.number("n_head")
    layer = [
        *norm("input_layernorm", hidden, bias=True),
        *linear("self_attention.query_key_value", hidden, 3 * hidden, bias=True),
        *linear("self_attention.dense", hidden, hidden, bias=True),
        *norm("post_attention_layernorm", hidden, bias=True),
        *linear("mlp.dense_h_to_4h", hidden, 4 * hidden, bias=True),
        *linear("mlp.dense_4h_to_h", 4 * hidden, hidden, bias=True),
    ]
    blocks = [
        plain_block(under(f"transformer.h.{number}.", layer), hidden, heads, 4 * hidden)
        for number in range(case.number("n_layer"))
    ]
    base: list[Part] = [
        *table("transformer.word_embeddings", case.number("vocab_size"), hidden),
        *norm("transformer.word_embeddings_layernorm", hidden, bias=True),
        Stack("decoder", tuple(blocks)),
        *norm("transformer.ln_f", hidden, bias=True),
    ]
    return finish_decoder(case, "Bloom", base, hidden=hidden)


FAMILIES = {
    "bloom": Family(
        DECODER_TASKS,
        _bloom,
        {
            "vocab_size": 250880,
            "hidden_size": 64,
            "n_layer": 2,
            "n_head": 8,
            "tie_word_embeddings": True,
        },
        aliases={
            "n_embed": "hidden_size",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
        },
    ),
}

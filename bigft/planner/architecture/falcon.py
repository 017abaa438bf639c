"""Falcon: one or a few heads of keys, attention and MLP mostly side by side."""

from dataclasses import replace

from bigft.planner.architecture.case import DECODER_TASKS, Case, Family
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
from bigft.planner.architecture.weights import Architecture, Stack, Weight


def _falcon(case: Case) -> Architecture:
    hidden, heads = case.number("hidden_size"), case.number("num_attention_heads")
    inner, bias = case.find_number("ffn_hidden_size") or 4 * hidden, case.flag("bias")
    key_value_heads, head_dim = _count_key_value_heads(case, heads), hidden // heads
    joined = (heads + 2 * key_value_heads) * head_dim
    layer = [
        *linear("self_attention.query_key_value", hidden, joined, bias=bias),
        *linear("self_attention.dense", hidden, hidden, bias=bias),
        *linear("mlp.dense_h_to_4h", hidden, inner, bias=bias),
        *linear("mlp.dense_4h_to_h", inner, hidden, bias=bias),
        *_norms(case, hidden),
    ]
    blocks = [
        replace(
            plain_block(under(f"transformer.h.{number}.", layer), hidden, heads, inner),
            key_value_heads=key_value_heads,
        )
        for number in range(case.number("num_hidden_layers"))
    ]
    base: list[Part] = [
        *table("transformer.word_embeddings", case.number("vocab_size"), hidden),
        Stack("decoder", tuple(blocks)),
        *norm("transformer.ln_f", hidden, bias=True),
    ]
    buffers = rotary("transformer.", head_dim)
    return finish_decoder(case, "Falcon", base, hidden=hidden, buffers=buffers)


def _count_key_value_heads(case: Case, heads: int) -> int:
    if case.flag("new_decoder_architecture"):
        return case.find_number("num_kv_heads") or heads
    return 1 if case.flag("multi_query") else heads


def _norms(case: Case, hidden: int) -> list[Weight]:
    if not case.flag("parallel_attn"):
        return norms(("post_attention_layernorm", "input_layernorm"), hidden, bias=True)
    count = case.find_number("num_ln_in_parallel_attn")
    if count is None and case.flag("new_decoder_architecture"):
        count = 2
    return norms(("ln_attn", "ln_mlp") if count == 2 else ("input_layernorm",), hidden, bias=True)


FAMILIES = {
    "falcon": Family(
        DECODER_TASKS,
        _falcon,
        {
            "vocab_size": 65024,
            "hidden_size": 4544,
            "num_hidden_layers": 32,
            "num_attention_heads": 71,
            "num_ln_in_parallel_attn": None,
            "num_kv_heads": None,
            "new_decoder_architecture": False,
            "multi_query": True,
            "parallel_attn": True,
            "bias": False,
            "ffn_hidden_size": None,
            "tie_word_embeddings": True,
        },
        aliases={"n_embed": "hidden_size"},
    ),
}

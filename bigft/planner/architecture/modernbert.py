"""ModernBERT: an encoder with rotary embeddings, gated MLPs and windows in most layers."""

from dataclasses import replace

from bigft.planner.architecture.case import Case, Family
from bigft.planner.architecture.gated import read_layer_types
from bigft.planner.architecture.parts import (
    Part,
    assemble,
    linear,
    norm,
    plain_block,
    rotary,
    table,
    under,
)
from bigft.planner.architecture.weights import Architecture, Block, Stack


def _modernbert(case: Case) -> Architecture:
    hidden, words = case.number("hidden_size"), case.number("vocab_size")
    bias = case.flag("norm_bias")
    every = case.number("global_attn_every_n_layers")
    kinds = read_layer_types(case, lambda number: number % every != 0)
    head = [
        *linear("head.dense", hidden, hidden, bias=case.flag("classifier_bias")),
        *norm("head.norm", hidden, bias=bias),
    ]
    if case.has_labels:
        name = "ModernBertForSequenceClassification"
        head += linear("classifier", hidden, case.labels, bias=True)
    else:
        name = "ModernBertForMaskedLM"
        parts = linear("decoder", hidden, words, bias=case.flag("decoder_bias"))
        head += parts[1:] if case.is_tied else parts
    order: list[Part] = [
        *table("model.embeddings.tok_embeddings", words, hidden),
        *norm("model.embeddings.norm", hidden, bias=bias),
        Stack("encoder", tuple(_block(case, number, kind) for number, kind in enumerate(kinds))),
        *norm("model.final_norm", hidden, bias=bias),
        *head,
    ]
    dim = hidden // case.number("num_attention_heads")
    buffers = rotary("model.", dim, kinds=[f"{kind}_" for kind in sorted(set(kinds))])
    return assemble(case, name, order, hidden=hidden, buffers=buffers)


def _block(case: Case, number: int, kind: str) -> Block:
    hidden, inner = case.number("hidden_size"), case.number("intermediate_size")
    bias, norm_bias = case.flag("attention_bias"), case.flag("norm_bias")
    layer = [
        # What comes out of the embeddings is normed already.
        *(norm("attn_norm", hidden, bias=norm_bias) if number else ()),
        *linear("attn.Wqkv", hidden, 3 * hidden, bias=bias),
        *linear("attn.Wo", hidden, hidden, bias=bias),
        *norm("mlp_norm", hidden, bias=norm_bias),
        *linear("mlp.Wi", hidden, 2 * inner, bias=case.flag("mlp_bias")),
        *linear("mlp.Wo", inner, hidden, bias=case.flag("mlp_bias")),
    ]
    weights = under(f"model.layers.{number}.", layer)
    block = plain_block(weights, hidden, case.number("num_attention_heads"), inner)
    # `local_attention` counts both sides.
    window = case.number("local_attention") // 2 if kind == "sliding_attention" else None
    return replace(block, is_gated=True, window=window)


FAMILIES = {
    "modernbert": Family(
        ("masked_lm", "classification", "regression"),
        _modernbert,
        {
            "vocab_size": 50368,
            "hidden_size": 768,
            "intermediate_size": 1152,
            "num_hidden_layers": 22,
            "num_attention_heads": 12,
            "norm_bias": False,
            "attention_bias": False,
            "global_attn_every_n_layers": 3,
            "local_attention": 128,
            "mlp_bias": False,
            "decoder_bias": True,
            "classifier_bias": False,
            "tie_word_embeddings": True,
        },
    ),
}

"""T5 and mT5: encoder and decoder with one table of relative positions each."""

from dataclasses import replace
from typing import Literal

from bigft.planner.architecture.bert import two_layer_classifier
from bigft.planner.architecture.case import Case, Family
from bigft.planner.architecture.parts import Part, assemble, linear, norm, table, under
from bigft.planner.architecture.weights import Architecture, Block, Stack, Weight


def _t5(case: Case) -> Architecture:
    return _build(case, "T5")


def _mt5(case: Case) -> Architecture:
    return _build(case, "MT5")


def _build(case: Case, class_stem: str) -> Architecture:
    if not case.has_weights:
        # Whatever `config.json` says, transformers 5 builds the head tied; it unties it again only
        # where the files hold two tables that differ.
        case = replace(case, values={**case.values, "tie_word_embeddings": True})
    hidden = case.number("d_model")
    prefix = "transformer." if case.has_labels else ""
    count = case.number("num_layers")
    decoder_count = case.find_number("num_decoder_layers")
    order: list[Part] = [
        *table(f"{prefix}shared", case.number("vocab_size"), hidden),
        _stack(case, "encoder", f"{prefix}encoder.", count),
        *norm(f"{prefix}encoder.final_layer_norm", hidden),
        _stack(case, "decoder", f"{prefix}decoder.", decoder_count or count),
        *norm(f"{prefix}decoder.final_layer_norm", hidden),
    ]
    if case.has_labels:
        order += two_layer_classifier(case, hidden, name="classification_head")
        name = "ForSequenceClassification"
    else:
        name = "ForConditionalGeneration"
        order += [] if case.is_tied else linear("lm_head", hidden, case.number("vocab_size"))
    return assemble(case, class_stem + name, order, hidden=hidden)


def _stack(case: Case, kind: Literal["encoder", "decoder"], prefix: str, count: int) -> Stack:
    blocks = [_block(case, kind, f"{prefix}block.{number}.", number) for number in range(count)]
    return Stack(kind, tuple(blocks))


def _block(case: Case, kind: str, prefix: str, number: int) -> Block:
    hidden, inner = case.number("d_model"), case.number("d_ff")
    heads, head_dim = case.number("num_heads"), case.number("d_kv")
    is_gated = str(case.values["feed_forward_proj"]).startswith("gated-")
    layer = _attention("layer.0.SelfAttention", hidden, heads * head_dim)
    if number == 0:
        buckets = case.number("relative_attention_num_buckets")
        layer += table("layer.0.SelfAttention.relative_attention_bias", buckets, heads)
    layer += norm("layer.0.layer_norm", hidden)
    if kind == "decoder":
        layer += _attention("layer.1.EncDecAttention", hidden, heads * head_dim)
        layer += norm("layer.1.layer_norm", hidden)
    last = "layer.2" if kind == "decoder" else "layer.1"
    for name in ("wi_0", "wi_1") if is_gated else ("wi",):
        layer += linear(f"{last}.DenseReluDense.{name}", hidden, inner)
    layer += linear(f"{last}.DenseReluDense.wo", inner, hidden)
    layer += norm(f"{last}.layer_norm", hidden)
    return Block(
        weights=under(prefix, layer),
        hidden=hidden,
        heads=heads,
        key_value_heads=heads,
        head_dim=head_dim,
        inner=inner,
        is_gated=is_gated,
        has_cross_attention=kind == "decoder",
    )


def _attention(name: str, hidden: int, width: int) -> list[Weight]:
    return [
        *linear(f"{name}.q", hidden, width),
        *linear(f"{name}.k", hidden, width),
        *linear(f"{name}.v", hidden, width),
        *linear(f"{name}.o", width, hidden),
    ]


_TASKS = ("seq2seq", "classification", "regression")
_NAMES = {
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "head_dim": "d_kv",
}
_T5 = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_decoder_layers": None,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "relu",
    "tie_word_embeddings": True,
}
_MT5 = {
    **_T5,
    "vocab_size": 250112,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
}
FAMILIES = {
    "t5": Family(_TASKS, _t5, _T5, aliases=_NAMES),
    "mt5": Family(_TASKS, _mt5, _MT5, aliases=_NAMES),
}

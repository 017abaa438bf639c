"""BART and mBART: encoder and decoder with learned positions and biases."""

from typing import Literal

from bigft.planner.architecture.bert import two_layer_classifier
from bigft.planner.architecture.case import Case, Family
from bigft.planner.architecture.parts import (
    Part,
    assemble,
    linear,
    norm,
    plain_block,
    table,
    under,
)
from bigft.planner.architecture.weights import Architecture, Block, Stack, Weight

_FIRST_POSITION = 2
"""Rows of the tables of positions that no token uses."""


def _bart(case: Case) -> Architecture:
    return _build(case, "Bart", has_final_norm=False)


def _mbart(case: Case) -> Architecture:
    return _build(case, "MBart", has_final_norm=True)


def _build(case: Case, class_stem: str, *, has_final_norm: bool) -> Architecture:
    hidden, words = case.number("d_model"), case.number("vocab_size")
    if case.task == "causal_lm":
        order: list[Part] = [
            *table("model.decoder.embed_tokens", words, hidden),
            *_stack(case, "decoder", has_final_norm=has_final_norm, has_table=False),
        ]
    else:
        has_tables = not case.flag("tie_word_embeddings")
        order = [
            *table("model.shared", words, hidden),
            *_stack(case, "encoder", has_final_norm=has_final_norm, has_table=has_tables),
            *_stack(case, "decoder", has_final_norm=has_final_norm, has_table=has_tables),
        ]
    if case.has_labels:
        order += two_layer_classifier(case, hidden, name="classification_head")
        return assemble(case, f"{class_stem}ForSequenceClassification", order, hidden=hidden)
    if not case.is_tied:
        order += linear("lm_head", hidden, words)
    if case.task == "causal_lm":
        return assemble(case, f"{class_stem}ForCausalLM", order, hidden=hidden)
    bias = Weight("final_logits_bias", (1, words))
    name = f"{class_stem}ForConditionalGeneration"
    return assemble(case, name, order, hidden=hidden, buffers=[bias])


def _stack(
    case: Case, kind: Literal["encoder", "decoder"], *, has_final_norm: bool, has_table: bool
) -> list[Part]:
    hidden, prefix = case.number("d_model"), f"model.{kind}."
    positions = case.number("max_position_embeddings") + _FIRST_POSITION
    blocks = [
        _block(case, kind, f"{prefix}layers.{number}.")
        for number in range(case.number(f"{kind}_layers"))
    ]
    words = case.number("vocab_size")
    return [
        *(table(f"{prefix}embed_tokens", words, hidden) if has_table else ()),
        *table(f"{prefix}embed_positions", positions, hidden),
        Stack(kind, tuple(blocks)),
        *norm(f"{prefix}layernorm_embedding", hidden, bias=True),
        *(norm(f"{prefix}layer_norm", hidden, bias=True) if has_final_norm else ()),
    ]


def _block(case: Case, kind: str, prefix: str) -> Block:
    hidden, inner = case.number("d_model"), case.number(f"{kind}_ffn_dim")
    layer = _attention("self_attn", hidden)
    if kind == "decoder":
        layer += _attention("encoder_attn", hidden)
    layer += [
        *linear("fc1", hidden, inner, bias=True),
        *linear("fc2", inner, hidden, bias=True),
        *norm("final_layer_norm", hidden, bias=True),
    ]
    return plain_block(
        under(prefix, layer),
        hidden,
        case.number(f"{kind}_attention_heads"),
        inner,
        has_cross_attention=kind == "decoder",
    )


def _attention(name: str, hidden: int) -> list[Weight]:
    return [
        *linear(f"{name}.k_proj", hidden, hidden, bias=True),
        *linear(f"{name}.v_proj", hidden, hidden, bias=True),
        *linear(f"{name}.q_proj", hidden, hidden, bias=True),
        *linear(f"{name}.out_proj", hidden, hidden, bias=True),
        *norm(f"{name}_layer_norm", hidden, bias=True),
    ]


_TASKS = ("causal_lm", "seq2seq", "masked_lm", "classification", "regression")
_BART = {
    "vocab_size": 50265,
    "max_position_embeddings": 1024,
    "encoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "encoder_attention_heads": 16,
    "decoder_layers": 12,
    "decoder_ffn_dim": 4096,
    "decoder_attention_heads": 16,
    "d_model": 1024,
    "tie_word_embeddings": True,
}
_NAMES = {
    "num_attention_heads": "encoder_attention_heads",
    "hidden_size": "d_model",
}

FAMILIES = {
    "bart": Family(_TASKS, _bart, _BART, aliases=_NAMES),
    "mbart": Family(_TASKS, _mbart, _BART, aliases=_NAMES),
}

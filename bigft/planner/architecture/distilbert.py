"""DistilBERT: BERT's layers under other names, no types of tokens, no pooler."""

from bigft.planner.architecture.bert import class_ending
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
from bigft.planner.architecture.weights import Architecture, Stack, Weight


def _distilbert(case: Case) -> Architecture:
    hidden, words = case.number("dim"), case.number("vocab_size")
    positions = case.number("max_position_embeddings")
    if case.has_labels:
        head = [
            *linear("pre_classifier", hidden, hidden, bias=True),
            *linear("classifier", hidden, case.labels, bias=True),
        ]
    else:
        head = [
            *linear("vocab_transform", hidden, hidden, bias=True),
            *norm("vocab_layer_norm", hidden, bias=True),
            *linear("vocab_projector", hidden, words, bias=True)[int(case.is_tied) :],
        ]
    order: list[Part] = [
        *table("distilbert.embeddings.word_embeddings", words, hidden),
        *table("distilbert.embeddings.position_embeddings", positions, hidden),
        *norm("distilbert.embeddings.LayerNorm", hidden, bias=True),
        _layers(case, hidden),
        *head,
    ]
    return assemble(
        case,
        "DistilBert" + class_ending(case),
        order,
        hidden=hidden,
        buffers=[Weight("distilbert.embeddings.position_ids", (1, positions))],
    )


def _layers(case: Case, hidden: int) -> Stack:
    heads, inner = case.number("n_heads"), case.number("hidden_dim")
    layer = [
        *linear("attention.q_lin", hidden, hidden, bias=True),
        *linear("attention.k_lin", hidden, hidden, bias=True),
        *linear("attention.v_lin", hidden, hidden, bias=True),
        *linear("attention.out_lin", hidden, hidden, bias=True),
        *norm("sa_layer_norm", hidden, bias=True),
        *linear("ffn.lin1", hidden, inner, bias=True),
        *linear("ffn.lin2", inner, hidden, bias=True),
        *norm("output_layer_norm", hidden, bias=True),
    ]
    blocks = [
        plain_block(under(f"distilbert.transformer.layer.{number}.", layer), hidden, heads, inner)
        for number in range(case.number("n_layers"))
    ]
    return Stack("encoder", tuple(blocks))


FAMILIES = {
    "distilbert": Family(
        ("masked_lm", "classification", "regression"),
        _distilbert,
        {
            "vocab_size": 30522,
            "max_position_embeddings": 512,
            "n_layers": 6,
            "n_heads": 12,
            "dim": 768,
            "hidden_dim": 3072,
            "tie_word_embeddings": True,
        },
        aliases={
            "hidden_size": "dim",
            "num_attention_heads": "n_heads",
            "num_hidden_layers": "n_layers",
        },
    ),
}

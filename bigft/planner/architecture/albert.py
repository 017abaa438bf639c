"""ALBERT: a narrow table of words, and layers that share their weights."""

from bigft.planner.architecture.bert import class_ending, position_buffers, untied_head
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


def _albert(case: Case) -> Architecture:
    hidden, words = case.number("hidden_size"), case.number("vocab_size")
    width, positions = case.number("embedding_size"), case.number("max_position_embeddings")
    embeddings = [
        *table("embeddings.word_embeddings", words, width),
        *table("embeddings.position_embeddings", positions, width),
        *table("embeddings.token_type_embeddings", case.number("type_vocab_size"), width),
        *norm("embeddings.LayerNorm", width, bias=True),
        *linear("encoder.embedding_hidden_mapping_in", width, hidden, bias=True),
    ]
    if case.has_labels:
        head = [
            *linear("albert.pooler", hidden, hidden, bias=True),
            *linear("classifier", hidden, case.labels, bias=True),
        ]
    else:
        head = [
            Weight("predictions.bias", (words,)),
            *norm("predictions.LayerNorm", width, bias=True),
            *linear("predictions.dense", hidden, width, bias=True),
            *untied_head(case, "predictions.decoder", width),
        ]
    order: list[Part] = [*under("albert.", embeddings), _layers(case, hidden), *head]
    return assemble(
        case,
        "Albert" + class_ending(case),
        order,
        hidden=hidden,
        buffers=position_buffers(case, "albert."),
    )


def _layers(case: Case, hidden: int) -> Stack:
    """Write down the layers in the order in which they run; those of one group are the same."""
    layers, groups = case.number("num_hidden_layers"), case.number("num_hidden_groups")
    blocks = [
        _block(case, hidden, f"{number * groups // layers}.albert_layers.{inner}.")
        for number in range(layers)
        for inner in range(case.number("inner_group_num"))
    ]
    return Stack("encoder", tuple(blocks))


def _block(case: Case, hidden: int, place: str) -> Block:
    inner = case.number("intermediate_size")
    layer = [
        *norm("full_layer_layer_norm", hidden, bias=True),
        *linear("attention.query", hidden, hidden, bias=True),
        *linear("attention.key", hidden, hidden, bias=True),
        *linear("attention.value", hidden, hidden, bias=True),
        *linear("attention.dense", hidden, hidden, bias=True),
        *norm("attention.LayerNorm", hidden, bias=True),
        *linear("ffn", hidden, inner, bias=True),
        *linear("ffn_output", inner, hidden, bias=True),
    ]
    weights = under(f"albert.encoder.albert_layer_groups.{place}", layer)
    return plain_block(weights, hidden, case.number("num_attention_heads"), inner)


FAMILIES = {
    "albert": Family(
        ("masked_lm", "classification", "regression"),
        _albert,
        {
            "vocab_size": 30000,
            "embedding_size": 128,
            "hidden_size": 4096,
            "num_hidden_layers": 12,
            "num_hidden_groups": 1,
            "num_attention_heads": 64,
            "intermediate_size": 16384,
            "inner_group_num": 1,
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
            "tie_word_embeddings": True,
        },
    ),
}

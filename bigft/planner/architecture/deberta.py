"""DeBERTa v2 and v3: positions as a second stream in the attention."""

from bigft.planner.architecture.bert import class_ending, untied_head
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


def _deberta(case: Case) -> Architecture:
    if not case.has_labels and not case.flag("legacy"):
        raise case.unknown("the newer head for masked tokens (legacy: false) is not written down")
    hidden, words = case.number("hidden_size"), case.number("vocab_size")
    width = case.find_number("embedding_size") or hidden
    positions = case.number("max_position_embeddings")
    if case.has_labels:
        pooled = case.find_number("pooler_hidden_size") or hidden
        head = [
            *linear("pooler.dense", pooled, pooled, bias=True),
            *linear("classifier", pooled, case.labels, bias=True),
        ]
    else:
        head = [
            Weight("cls.predictions.bias", (words,)),
            *linear("cls.predictions.transform.dense", hidden, width, bias=True),
            *norm("cls.predictions.transform.LayerNorm", width, bias=True),
            *untied_head(case, "cls.predictions.decoder", width),
        ]
    order: list[Part] = [
        *under("deberta.embeddings.", _embeddings(case, hidden, width, positions)),
        _layers(case, hidden),
        *under("deberta.encoder.", _relative_positions(case, hidden, positions)),
        *head,
    ]
    return assemble(
        case,
        "DebertaV2" + class_ending(case),
        order,
        hidden=hidden,
        buffers=[Weight("deberta.embeddings.position_ids", (1, positions))],
    )


def _embeddings(case: Case, hidden: int, width: int, positions: int) -> list[Weight]:
    parts = table("word_embeddings", case.number("vocab_size"), width)
    if case.flag("position_biased_input"):
        parts += table("position_embeddings", positions, width)
    if types := case.number("type_vocab_size"):
        parts += table("token_type_embeddings", types, width)
    if width != hidden:
        parts += linear("embed_proj", width, hidden)
    return [*parts, *norm("LayerNorm", hidden, bias=True)]


def _layers(case: Case, hidden: int) -> Stack:
    heads, inner = case.number("num_attention_heads"), case.number("intermediate_size")
    head_dim = case.find_number("attention_head_size") or hidden // heads
    names = ["query_proj", "key_proj", "value_proj", *_position_projections(case)]
    layer = [
        *(
            weight
            for name in names
            for weight in linear(f"attention.self.{name}", hidden, heads * head_dim, bias=True)
        ),
        *linear("attention.output.dense", hidden, hidden, bias=True),
        *norm("attention.output.LayerNorm", hidden, bias=True),
        *linear("intermediate.dense", hidden, inner, bias=True),
        *linear("output.dense", inner, hidden, bias=True),
        *norm("output.LayerNorm", hidden, bias=True),
    ]
    blocks = [
        plain_block(
            under(f"deberta.encoder.layer.{number}.", layer),
            hidden,
            heads,
            inner,
            head_dim=head_dim,
        )
        for number in range(case.number("num_hidden_layers"))
    ]
    return Stack("encoder", tuple(blocks))


def _position_projections(case: Case) -> list[str]:
    if not case.flag("relative_attention") or case.flag("share_att_key"):
        return []
    given = case.values["pos_att_type"] or ()
    kinds = given.lower().split("|") if isinstance(given, str) else given
    kinds = [kind.strip() for kind in kinds]
    names = {"c2p": "pos_key_proj", "p2c": "pos_query_proj"}
    return [name for kind, name in names.items() if kind in kinds]


def _relative_positions(case: Case, hidden: int, positions: int) -> list[Weight]:
    parts: list[Weight] = []
    if case.flag("relative_attention"):
        reach = case.number("max_relative_positions")
        reach = reach if reach >= 1 else positions
        buckets = case.number("position_buckets")
        parts += table("rel_embeddings", 2 * (buckets if buckets > 0 else reach), hidden)
    if "layer_norm" in str(case.values["norm_rel_ebd"]).lower():
        parts += norm("LayerNorm", hidden, bias=True)
    if (size := case.number("conv_kernel_size")) > 0:
        shape = (hidden, hidden // case.number("conv_groups"), size)
        parts += [Weight("conv.conv.weight", shape), Weight("conv.conv.bias", (hidden,))]
        parts += norm("conv.LayerNorm", hidden, bias=True)
    return parts


FAMILIES = {
    "deberta-v2": Family(
        ("masked_lm", "classification", "regression"),
        _deberta,
        {
            "vocab_size": 128100,
            "hidden_size": 1536,
            "num_hidden_layers": 24,
            "num_attention_heads": 24,
            "intermediate_size": 6144,
            "max_position_embeddings": 512,
            "type_vocab_size": 0,
            "relative_attention": False,
            "max_relative_positions": -1,
            "position_buckets": -1,
            "position_biased_input": True,
            "pos_att_type": None,
            "share_att_key": False,
            "norm_rel_ebd": "none",
            "conv_kernel_size": 0,
            "conv_groups": 1,
            "legacy": True,
            "tie_word_embeddings": True,
        },
    ),
}

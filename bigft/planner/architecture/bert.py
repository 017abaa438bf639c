"""BERT and those with its layers: RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA."""

from collections.abc import Sequence

from bigft.planner.architecture.case import ENCODER_TASKS, Case, Family
from bigft.planner.architecture.parts import Part, assemble, linear, norm, plain_block, table, under
from bigft.planner.architecture.weights import Architecture, Stack, Weight


def _bert(case: Case) -> Architecture:
    hidden, words = case.number("hidden_size"), case.number("vocab_size")
    embeddings = [
        *table("embeddings.word_embeddings", words, hidden),
        *table("embeddings.position_embeddings", case.number("max_position_embeddings"), hidden),
        *table("embeddings.token_type_embeddings", case.number("type_vocab_size"), hidden),
        *norm("embeddings.LayerNorm", hidden, bias=True),
    ]
    base: list[Part] = [*under("bert.", embeddings), bert_layers(case, "bert.encoder.layer.")]
    buffers = position_buffers(case, "bert.")
    if case.has_labels:
        head = [
            *linear("bert.pooler.dense", hidden, hidden, bias=True),
            *linear("classifier", hidden, case.labels, bias=True),
        ]
        name = "BertForSequenceClassification"
        return assemble(case, name, [*base, *head], hidden=hidden, buffers=buffers)
    head = [
        Weight("cls.predictions.bias", (words,)),
        *linear("cls.predictions.transform.dense", hidden, hidden, bias=True),
        *norm("cls.predictions.transform.LayerNorm", hidden, bias=True),
        *untied_head(case, "cls.predictions.decoder", hidden),
    ]
    name = "BertForMaskedLM" if case.task == "masked_lm" else "BertLMHeadModel"
    return assemble(case, name, [*base, *head], hidden=hidden, buffers=buffers)


def bert_layers(case: Case, prefix: str) -> Stack:
    """Write down layers that norm after attention and after the MLP."""
    if case.flag("add_cross_attention"):
        raise case.unknown("cross-attention in an encoder is not written down")
    hidden, heads = case.number("hidden_size"), case.number("num_attention_heads")
    inner = case.number("intermediate_size")
    width = heads * (hidden // heads)
    layer = [
        *linear("attention.self.query", hidden, width, bias=True),
        *linear("attention.self.key", hidden, width, bias=True),
        *linear("attention.self.value", hidden, width, bias=True),
        *linear("attention.output.dense", hidden, hidden, bias=True),
        *norm("attention.output.LayerNorm", hidden, bias=True),
        *linear("intermediate.dense", hidden, inner, bias=True),
        *linear("output.dense", inner, hidden, bias=True),
        *norm("output.LayerNorm", hidden, bias=True),
    ]
    blocks = [
        plain_block(under(f"{prefix}{number}.", layer), hidden, heads, inner)
        for number in range(case.number("num_hidden_layers"))
    ]
    return Stack("encoder", tuple(blocks))


def position_buffers(case: Case, prefix: str) -> list[Weight]:
    """Write down the numbers of positions and types that BERT's kin keep."""
    shape = (1, case.number("max_position_embeddings"))
    return [
        Weight(f"{prefix}embeddings.position_ids", shape),
        Weight(f"{prefix}embeddings.token_type_ids", shape),
    ]


def untied_head(case: Case, name: str, inputs: int) -> list[Weight]:
    """Write down a vocabulary's head with a bias, which is tied as well where the table is."""
    return [] if case.is_tied else linear(name, inputs, case.number("vocab_size"), bias=True)


def _roberta(case: Case) -> Architecture:
    base, head = _roberta_base(case), _roberta_head(case)
    return _finish_roberta(case, "Roberta", [*base, *head])


def _xlm_roberta(case: Case) -> Architecture:
    # In this class the head stands in front of the model, so the tied table has the head's name.
    hidden, words = case.number("hidden_size"), case.number("vocab_size")
    base, head = _roberta_base(case), _roberta_head(case)
    if case.is_tied:
        head += table("lm_head.decoder", words, hidden)
        base = base[1:]
    return _finish_roberta(case, "XLMRoberta", [*head, *base])


def _roberta_base(case: Case) -> list[Part]:
    hidden = case.number("hidden_size")
    embeddings = [
        *table("embeddings.word_embeddings", case.number("vocab_size"), hidden),
        *table("embeddings.token_type_embeddings", case.number("type_vocab_size"), hidden),
        *norm("embeddings.LayerNorm", hidden, bias=True),
        *table("embeddings.position_embeddings", case.number("max_position_embeddings"), hidden),
    ]
    return [*under("roberta.", embeddings), bert_layers(case, "roberta.encoder.layer.")]


def _roberta_head(case: Case) -> list[Weight]:
    hidden = case.number("hidden_size")
    if case.has_labels:
        return two_layer_classifier(case, hidden)
    return [
        Weight("lm_head.bias", (case.number("vocab_size"),)),
        *linear("lm_head.dense", hidden, hidden, bias=True),
        *norm("lm_head.layer_norm", hidden, bias=True),
        *untied_head(case, "lm_head.decoder", hidden),
    ]


def _finish_roberta(case: Case, class_stem: str, order: Sequence[Part]) -> Architecture:
    return assemble(
        case,
        class_stem + class_ending(case),
        order,
        hidden=case.number("hidden_size"),
        buffers=position_buffers(case, "roberta."),
    )


def class_ending(case: Case) -> str:
    """Return what the class of the task is called."""
    if case.has_labels:
        return "ForSequenceClassification"
    return "ForMaskedLM" if case.task == "masked_lm" else "ForCausalLM"


def two_layer_classifier(case: Case, hidden: int, *, name: str = "classifier") -> list[Weight]:
    """Write down a classifier with a layer of its own before the labels."""
    return [
        *linear(f"{name}.dense", hidden, hidden, bias=True),
        *linear(f"{name}.out_proj", hidden, case.labels, bias=True),
    ]


def _electra(case: Case) -> Architecture:
    hidden, words = case.number("hidden_size"), case.number("vocab_size")
    width, positions = case.number("embedding_size"), case.number("max_position_embeddings")
    embeddings = [
        *table("embeddings.word_embeddings", words, width),
        *table("embeddings.position_embeddings", positions, width),
        *table("embeddings.token_type_embeddings", case.number("type_vocab_size"), width),
        *norm("embeddings.LayerNorm", width, bias=True),
    ]
    if width != hidden:
        embeddings += linear("embeddings_project", width, hidden, bias=True)
    base: list[Part] = [*under("electra.", embeddings), bert_layers(case, "electra.encoder.layer.")]
    if case.has_labels:
        head = two_layer_classifier(case, hidden)
    else:
        head = [
            *norm("generator_predictions.LayerNorm", width, bias=True),
            *linear("generator_predictions.dense", hidden, width, bias=True),
            *linear("generator_lm_head", width, words, bias=True)[int(case.is_tied) :],
        ]
    return assemble(
        case,
        "Electra" + class_ending(case),
        [*base, *head],
        hidden=hidden,
        buffers=position_buffers(case, "electra."),
    )


_BERT = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}

FAMILIES = {
    "bert": Family(ENCODER_TASKS, _bert, _BERT),
    "roberta": Family(ENCODER_TASKS, _roberta, {**_BERT, "vocab_size": 50265}),
    "xlm-roberta": Family(ENCODER_TASKS, _xlm_roberta, _BERT),
    "electra": Family(
        ENCODER_TASKS,
        _electra,
        {
            **_BERT,
            "embedding_size": 128,
            "hidden_size": 256,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
        },
    ),
}

"""Tiny models and batches of every task, for tests that hold them against transformers."""

from typing import Any

from bigft.data.example import Labelled, PromptAnswer, Text
from bigft.data.layouts.layout import Layout
from bigft.data.loading.batches import build_collate
from bigft.data.loading.collate import Batch

TEXTS = [
    "red cat runs",
    "the blue dog and the bird sleeps near two cat",
    "one",
    "green bird eats a far dog but three cat and one dog",
    "two blue",
]


def labelled(labels: list[Any], *, pairs: bool = False) -> list[Labelled]:
    """Texts, or pairs of them, with these labels."""
    seconds = [*TEXTS[1:], TEXTS[0]] if pairs else [None] * len(TEXTS)
    return [Labelled(*row) for row in zip(TEXTS, labels, seconds, strict=True)]


def source_targets() -> list[PromptAnswer]:
    return [PromptAnswer(text, text[::-1]) for text in TEXTS]


def texts() -> list[Text]:
    return [Text(text) for text in TEXTS]


def make_batch(layout: Layout, examples: list[Any], *, padding: int = 0) -> Batch:
    """A batch of these examples, and of some sequences of nothing."""
    items: list[list[Any]] = []
    for result in layout.tokenize(examples):
        assert not isinstance(result, ValueError), result
        items += [[row] for row in result.rows]
    return build_collate(layout)([*items, *([[]] * padding)])


def bert_config(**changes: Any) -> Any:
    """A two-layer BERT without dropout."""
    from transformers import BertConfig

    values = dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=576,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertConfig(**{**values, **changes})


def t5_config(**changes: Any) -> Any:
    """A two-layer T5 without dropout."""
    from transformers import T5Config

    values = dict(
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        vocab_size=576,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=0,
    )
    return T5Config(**{**values, **changes})

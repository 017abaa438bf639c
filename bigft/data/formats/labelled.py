"""A text, or a pair of texts, with a label: the columns of GLUE and its kin."""

from collections.abc import Mapping
from itertools import product
from typing import Any

from bigft.data.example import Labelled
from bigft.data.formats.checks import check_text, describe_kind
from bigft.data.formats.shape import Shape

NAME = "labelled"

_TEXTS = (
    ("text",),
    ("sentence",),
    ("content",),
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
)
_LABELS = ("label", "labels")
SHAPES = tuple(Shape((*texts, label)) for texts, label in product(_TEXTS, _LABELS))


def fits(record: Mapping[str, Any], shape: Shape) -> bool:
    """Whether the texts are text and the label is one word or number."""
    *texts, label = shape.needed
    is_single = isinstance(record[label], str | int | float)
    return is_single and all(isinstance(record[column], str) for column in texts)


def read(record: Mapping[str, Any], shape: Shape) -> Labelled:
    """Turn one record into an example.

    Raises:
        ValueError: A text is empty, or the label is neither text nor a number.
    """
    *columns, label_column = shape.needed
    texts = [check_text(record.get(column), column) for column in columns]
    label = record.get(label_column)
    if isinstance(label, str):
        check_text(label, label_column)
    elif not isinstance(label, int | float) or label != label:  # noqa: PLR0124 (only NaN differs)
        raise ValueError(f"`{label_column}` has to be text or a number, not {describe_kind(label)}")
    return Labelled(texts[0], label, texts[1] if len(texts) > 1 else None)

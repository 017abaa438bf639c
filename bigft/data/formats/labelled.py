"""A text, or a pair of texts, with a label: the columns of GLUE and its kin.

A list of labels has all that apply to the text, maybe none, or several numbers to predict.
"""

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

from bigft.data.example import Label, Labelled
from bigft.data.formats.checks import check_text, describe_kind
from bigft.data.formats.shape import Shape

NAME = "labelled"

_PAIRS = (
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
)
_TEXTS = (("text",), ("sentence",), ("content",), *_PAIRS, ("question", "sentence"))
_LABELS = ("label", "labels")
# STS-B's. Of pairs only: beside a `text`, as in FineWeb-Edu, a score is a note about raw text.
_SCORE = "score"
SHAPES = (
    *(Shape((*texts, label)) for texts, label in product(_TEXTS, _LABELS)),
    *(Shape((*texts, _SCORE)) for texts in _PAIRS),
)


def fits(record: Mapping[str, Any], shape: Shape) -> bool:
    """Whether the texts are text and the label is one word or number, or a list.

    A score is the label only where there is no other one.
    """
    *texts, label = shape.needed
    if label == _SCORE and any(record.get(column) is not None for column in _LABELS):
        return False
    is_label = isinstance(record[label], str | int | float | list)
    return is_label and all(isinstance(record[column], str) for column in texts)


def read(record: Mapping[str, Any], shape: Shape) -> Labelled:
    """Turn one record into an example.

    Raises:
        ValueError: A text is empty, or a label is neither text nor a number, or not finite.
    """
    *columns, label_column = shape.needed
    texts = [check_text(record.get(column), column) for column in columns]
    value = record.get(label_column)
    label: Label | list[Label]
    if isinstance(value, list):
        label = [_check_label(item, f"{label_column}[{n}]") for n, item in enumerate(value)]
    else:
        label = _check_label(value, label_column)
    return Labelled(texts[0], label, texts[1] if len(texts) > 1 else None)


def _check_label(value: object, place: str) -> Label:
    if isinstance(value, str):
        return check_text(value, place)
    if not isinstance(value, int | float):
        raise ValueError(f"`{place}` has to be text or a number, not {describe_kind(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"`{place}` has to be text or a number that is finite, not {value}")
    return value

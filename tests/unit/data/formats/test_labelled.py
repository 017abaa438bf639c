from typing import Any

import pytest

from bigft.data.example import Labelled
from bigft.data.formats import labelled
from bigft.data.formats.shape import Shape


@pytest.mark.parametrize(
    ("columns", "record", "expected"),
    [
        (
            ("sentence", "label"),
            {"sentence": "a gripping film", "label": 1, "idx": 7},
            Labelled("a gripping film", 1),
        ),
        (
            ("premise", "hypothesis", "label"),
            {"premise": "It rains.", "hypothesis": "It is wet.", "label": "entailment"},
            Labelled("It rains.", "entailment", "It is wet."),
        ),
        (
            ("sentence1", "sentence2", "label"),
            {"sentence1": "A plane.", "sentence2": "An air plane.", "label": 5.0},
            Labelled("A plane.", 5.0, "An air plane."),
        ),
        (("text", "labels"), {"text": "Buy now", "labels": "spam"}, Labelled("Buy now", "spam")),
    ],
)
def test_texts_and_label_are_read(
    columns: tuple[str, ...], record: dict[str, Any], expected: Labelled
) -> None:
    assert labelled.read(record, Shape(columns)) == expected


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": "a", "label": None}, "`label` has to be text or a number, not null"),
        ({"text": "a", "label": [1, 2]}, "`label` has to be text or a number, not a list"),
        ({"text": "a", "label": float("nan")}, "`label` has to be text or a number"),
        ({"text": "a", "label": " "}, "`label` is empty"),
        ({"text": "", "label": 1}, "`text` is empty"),
    ],
)
def test_bad_rows_are_refused_with_the_reason(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        labelled.read(record, Shape(("text", "label")))

from typing import Any

import pytest

from bigft.data.example import Labelled, Text
from bigft.data.formats import labelled
from bigft.data.formats.shape import Shape
from bigft.data.formats.table import Recognizer


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
        (("text", "labels"), {"text": "a", "labels": ["x", "y"]}, Labelled("a", ["x", "y"])),
        (("text", "labels"), {"text": "a", "labels": [0, 3]}, Labelled("a", [0, 3])),
        (("text", "label"), {"text": "a", "label": [0.5, -2]}, Labelled("a", [0.5, -2])),
        (("text", "labels"), {"text": "a", "labels": []}, Labelled("a", [])),
        (("text", "label"), {"text": "a", "label": True}, Labelled("a", True)),
        (("text", "label"), {"text": "a", "label": 10**400}, Labelled("a", 10**400)),
        (
            ("sentence1", "sentence2", "score"),
            {"sentence1": "A plane.", "sentence2": "An air plane.", "score": 4.75},
            Labelled("A plane.", 4.75, "An air plane."),
        ),
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
        ({"text": "a", "label": {"x": 1}}, "`label` has to be text or a number, not an object"),
        (
            {"text": "a", "label": ["x", [1]]},
            r"`label\[1\]` has to be text or a number, not a list",
        ),
        ({"text": "a", "label": [1, None]}, r"`label\[1\]` has to be text or a number, not null"),
        ({"text": "a", "label": [{}]}, r"`label\[0\]` has to be text or a number, not an object"),
        ({"text": "a", "label": [1.0, 2.0, float("inf")]}, r"`label\[2\]` .* finite, not inf"),
        ({"text": "a", "label": ["x", ""]}, r"`label\[1\]` is empty"),
        (
            {"text": "a", "label": float("nan")},
            "`label` has to be .* that is finite, not nan",
        ),
        ({"text": "a", "label": float("-inf")}, "`label` .* finite, not -inf"),
        ({"text": "a", "label": " "}, "`label` is empty"),
        ({"text": "", "label": 1}, "`text` is empty"),
    ],
)
def test_bad_rows_are_refused_with_the_reason(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        labelled.read(record, Shape(("text", "label")))


def read(record: dict[str, Any]) -> tuple[str, Any]:
    return Recognizer().read(record)


def test_a_list_of_labels_is_no_raw_text() -> None:
    for labels in (["x"], [], [0.5, 1.5]):
        assert read({"text": "a", "labels": labels}) == ("labelled", Labelled("a", labels))
    with pytest.raises(ValueError, match=r"`labels\[0\]` .* not a list"):
        read({"text": "a", "labels": [["x"]]})


def test_the_list_of_a_row_is_not_shared_with_its_example() -> None:
    labels = ["x"]
    _, example = read({"text": "a", "labels": labels})
    labels.append("y")
    assert example.label == ["x"]


def test_a_score_is_the_label_of_a_pair_that_has_no_other() -> None:
    pair = {"sentence1": "a", "sentence2": "b"}
    assert read({**pair, "score": 4.5}) == ("labelled", Labelled("a", 4.5, "b"))
    assert read({**pair, "score": 4.5, "label": None}) == ("labelled", Labelled("a", 4.5, "b"))
    for column in ("label", "labels"):
        assert read({**pair, "score": 4.5, column: 1}) == ("labelled", Labelled("a", 1, "b"))
    said = Recognizer("auto", {"score": "rating"}).read({**pair, "rating": 2, "label": 1})
    assert said == ("labelled", Labelled("a", 2, "b"))


def test_a_score_beside_raw_text_is_a_note() -> None:
    # FineWeb-Edu's columns.
    row = {"text": "a", "id": "1", "token_count": 3, "score": 2.5, "int_score": 3}
    assert read(row) == ("text", Text("a"))
    assert read({"content": "a", "score": 1.0}) == ("text", Text("a"))

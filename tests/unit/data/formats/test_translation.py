from typing import Any

import pytest

from bigft.data.example import PromptAnswer
from bigft.data.formats import translation
from bigft.data.formats.shape import Shape

OBJECT = Shape(("translation",))


def test_two_columns_are_a_prompt_and_its_answer() -> None:
    example = translation.read({"src": "Hallo", "tgt": "Hello"}, Shape(("src", "tgt")))
    assert example == PromptAnswer("Hallo\n", "Hello")


def test_the_first_of_two_languages_is_translated_to_the_other() -> None:
    record = {"translation": {"de": "Guten Morgen", "fr": None, "en": "Good morning"}}
    assert translation.read(record, OBJECT) == PromptAnswer("Guten Morgen\n", "Good morning")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"de": "a"}, r"has 1 languages \(de\), not 2; name two with --data.columns.source"),
        ({"de": "a", "en": "b", "fr": "c"}, r"has 3 languages \(de, en, fr\)"),
        ({"de": "a", "en": " "}, "`translation.en` is empty"),
        ([1], "`translation` has to be an object, not a list"),
    ],
)
def test_bad_rows_are_refused_with_the_reason(value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        translation.read({"translation": value}, OBJECT)

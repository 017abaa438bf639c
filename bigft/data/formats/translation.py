"""A text and its translation: two columns, or one with an object of two languages.

The object is the form of the `datasets` library, `{"de": "Hallo", "en": "Hello"}`; the language
that stands first is translated to the other. Of a list of translations the first is learned.
"""

from collections.abc import Mapping
from typing import Any

from bigft.data.example import PromptAnswer
from bigft.data.formats.checks import check_text, describe_kind, split_answers
from bigft.data.formats.shape import Shape

NAME = "translation"
_SIDES = (
    ("source", "target"),
    ("src", "tgt"),
    ("input_text", "target_text"),
    ("source_text", "target_text"),
)
_OBJECT = ("translation",)
SHAPES = tuple(Shape(columns) for columns in (_OBJECT, *_SIDES))


def fits(record: Mapping[str, Any], shape: Shape) -> bool:
    """Whether there are two texts."""
    if shape.needed == _OBJECT:
        return isinstance(record["translation"], dict)
    source, target = (record[column] for column in shape.needed)
    return isinstance(source, str) and isinstance(split_answers(target)[0], str)


def read(record: Mapping[str, Any], shape: Shape) -> PromptAnswer:
    """Turn one record into a prompt, ended by a line break, and its translation.

    Raises:
        ValueError: A text is empty or missing, or there are more than two languages.
    """
    if shape.needed != _OBJECT:
        source_column, target_column = shape.needed
        source = check_text(record.get(source_column), source_column)
        chosen, others = split_answers(record.get(target_column))
        return PromptAnswer(f"{source}\n", check_text(chosen, target_column), others)
    value = record.get("translation")
    if not isinstance(value, dict):
        raise ValueError(f"`translation` has to be an object, not {describe_kind(value)}")
    texts = {str(name): text for name, text in value.items() if text is not None}
    if len(texts) != 2:
        raise ValueError(
            f"`translation` has {len(texts)} languages ({', '.join(texts)[:60]}), not 2; name two "
            "with --data.columns.source translation.en --data.columns.target translation.de"
        )
    source, target = (check_text(text, f"translation.{name}") for name, text in texts.items())
    return PromptAnswer(f"{source}\n", target)

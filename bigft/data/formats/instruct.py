"""Instructions in Alpaca's columns: `instruction`, maybe `input` or `context`, and an answer."""

from collections.abc import Mapping
from typing import Any

from bigft.data.example import Conversation
from bigft.data.formats.checks import check_text, is_blank
from bigft.data.formats.shape import SYSTEM_COLUMNS, TOOL_COLUMNS, Shape
from bigft.data.formats.turns import build_conversation

NAME = "instruct"
_ANSWERS = ("output", "response", "answer", "completion", "solution", "target")
_INPUTS = ("input", "context")
_OPTIONAL = (*_INPUTS, "history", *SYSTEM_COLUMNS, *TOOL_COLUMNS)
SHAPES = tuple(Shape(("instruction", answer), _OPTIONAL) for answer in _ANSWERS)


def fits(record: Mapping[str, Any], shape: Shape) -> bool:
    """Whether instruction and answer are text."""
    return all(isinstance(record[column], str) for column in shape.needed)


def read(record: Mapping[str, Any], shape: Shape) -> Conversation:
    """Turn one record into an example; the input follows its instruction after a blank line.

    Raises:
        ValueError: A column is empty or not text.
    """
    instruction, answer = (check_text(record.get(name), name) for name in shape.needed)
    inputs = [(name, record.get(name)) for name in _INPUTS]
    filled = [check_text(value, name) for name, value in inputs if not is_blank(value)]
    turns = [
        {"role": "user", "content": "\n\n".join([instruction, *filled])},
        {"role": "assistant", "content": answer},
    ]
    return build_conversation(record, shape, turns)

"""Instructions in Alpaca's columns: `instruction`, maybe `input` or `context`, and an answer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bigft.data.example import Conversation
from bigft.data.formats.checks import check_text, is_blank, split_answers
from bigft.data.formats.shape import SYSTEM_COLUMNS, TOOL_COLUMNS, Shape
from bigft.data.formats.turns import build_conversation

NAME = "instruct"
_ANSWERS = ("output", "response", "answer", "completion", "solution", "target")
_INPUTS = ("input", "context")
_OPTIONAL = (*_INPUTS, "history", *SYSTEM_COLUMNS, *TOOL_COLUMNS)
SHAPES = tuple(Shape(("instruction", answer), _OPTIONAL) for answer in _ANSWERS)


def fits(record: Mapping[str, Any], shape: Shape) -> bool:
    """Whether instruction and answer are text, or there are several answers."""
    instruction, answer = (record[column] for column in shape.needed)
    return isinstance(instruction, str) and isinstance(split_answers(answer)[0], str)


def read(record: Mapping[str, Any], shape: Shape) -> Conversation:
    """Turn one record into an example; the input follows its instruction after a blank line.

    Raises:
        ValueError: A column is empty or not text.
    """
    instruction_column, answer_column = shape.needed
    instruction = check_text(record.get(instruction_column), instruction_column)
    chosen, others = split_answers(record.get(answer_column))
    answer = check_text(chosen, answer_column)
    inputs = [(name, record.get(name)) for name in _INPUTS]
    filled = [check_text(value, name) for name, value in inputs if not is_blank(value)]
    turns = [
        {"role": "user", "content": "\n\n".join([instruction, *filled])},
        {"role": "assistant", "content": answer},
    ]
    return replace(build_conversation(record, shape, turns), others=others)

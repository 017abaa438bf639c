"""Conversations in OpenAI's spelling: a list of `{role, content}`, and maybe `tools`."""

from collections.abc import Mapping
from typing import Any

from bigft.data.example import Conversation
from bigft.data.formats.checks import parse_json
from bigft.data.formats.shape import SYSTEM_COLUMNS, TOOL_COLUMNS, Shape
from bigft.data.formats.turns import build_conversation, read_turns

NAME = "chat"
COLUMNS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")
SHAPES = tuple(Shape((column,), (*TOOL_COLUMNS, *SYSTEM_COLUMNS)) for column in COLUMNS)


def fits(record: Mapping[str, Any], shape: Shape) -> bool:
    """Whether the column holds turns, none of them in ShareGPT's spelling."""
    first = find_first_turn(record[shape.needed[0]])
    return isinstance(first, str) or (isinstance(first, dict) and "from" not in first)


def read(record: Mapping[str, Any], shape: Shape) -> Conversation:
    """Turn one record into an example.

    Raises:
        ValueError: A turn is bad, or the turns are in an impossible order.
    """
    column = shape.needed[0]
    return build_conversation(record, shape, read_turns(record.get(column), column))


def find_first_turn(value: object) -> object:
    """Find the first turn of a list of turns or of its JSON text; None when there is none."""
    if isinstance(value, str):
        try:
            value = parse_json(value, "")
        except ValueError:
            return None
    return value[0] if isinstance(value, list) and value else None

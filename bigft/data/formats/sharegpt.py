"""Conversations in ShareGPT's spelling: a list of `{from, value}` with names like human and gpt."""

from collections.abc import Mapping
from typing import Any

from bigft.data.formats import chat
from bigft.data.formats.shape import SYSTEM_COLUMNS, TOOL_COLUMNS, Shape

NAME = "sharegpt"
COLUMNS = ("conversations", "conversation", "messages", "dialog", "dialogue", "chat")
SHAPES = tuple(Shape((column,), (*TOOL_COLUMNS, *SYSTEM_COLUMNS)) for column in COLUMNS)

read = chat.read


def fits(record: Mapping[str, Any], shape: Shape) -> bool:
    """Whether the column holds turns in this spelling."""
    first = chat.find_first_turn(record[shape.needed[0]])
    return isinstance(first, dict) and "from" in first

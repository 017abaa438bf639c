"""Conversations in OpenAI's form: `messages`, a list of `{role, content}`, and maybe `tools`."""

import json
from collections.abc import Mapping
from typing import Any

from bigft.data.example import Conversation
from bigft.data.formats.text import check_unicode

NAME = "chat"
COLUMNS = ("messages",)
ROLES = ("system", "developer", "user", "assistant", "tool")


def matches(columns: set[str]) -> bool:
    """Whether records with these columns hold conversations."""
    return "messages" in columns


def read(record: Mapping[str, Any]) -> Conversation:
    """Turn one record into an example.

    Raises:
        ValueError: A message has no known role or no content.
    """
    messages = _read_list(record, "messages")
    if not messages:
        raise ValueError("`messages` is empty")
    tools = None if record.get("tools") is None else _read_list(record, "tools")
    return Conversation([_read_message(n, m) for n, m in enumerate(messages, 1)], tools or None)


def _read_list(record: Mapping[str, Any], column: str) -> list[Any]:
    value = record.get(column)
    if isinstance(value, str):  # CSV and some Parquet files keep the list as JSON text.
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"`{column}` is text but not JSON: {value!r:.60}") from None
    if not isinstance(value, list):
        raise ValueError(f"`{column}` has to be a list, not {type(value).__name__}: {value!r:.60}")
    return value


def _read_message(number: int, message: object) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise ValueError(f"message {number} has to be an object, not {message!r:.60}")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ValueError(f"message {number}: the role {role!r:.60} is none of {', '.join(ROLES)}")
    if content is None and message.get("tool_calls"):
        content = ""  # OpenAI writes null beside a call; most templates join strings.
    if not isinstance(content, str):
        kind = type(content).__name__
        raise ValueError(f"message {number} ({role}): `content` has to be text, not {kind}")
    check_unicode(content, f"messages[{number - 1}].content")
    # Columnar files fill absent keys with null, which templates would take for given.
    filled = {str(key): value for key, value in message.items() if value is not None}
    return {**filled, "content": content}

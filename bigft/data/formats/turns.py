"""Turns of a conversation, in OpenAI's or ShareGPT's spelling, to OpenAI's.

Conversations are `{"role": "user", "content": "Hi"}` or `{"from": "human", "value": "Hi"}`; both
are read everywhere. A `developer` is a system turn by its newer name, which most templates lack.
"""

from collections.abc import Mapping
from typing import Any

from bigft.config.hints import suggest
from bigft.data.example import Conversation
from bigft.data.formats.checks import (
    EmptyTextError,
    check_text,
    check_unicode,
    copy_nested,
    describe_kind,
    is_blank,
    read_list,
)
from bigft.data.formats.shape import SYSTEM_COLUMNS, TOOL_COLUMNS, Shape
from bigft.data.formats.tools import read_calls, read_tools

_CALL = "call of a tool"

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
    **dict.fromkeys(("bing", "bard", "claude", "ai"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
    **dict.fromkeys(("function_response", "tool_response", "tool_result"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), _CALL),
}
_SHOWN_ROLES = "system, user, assistant, tool (or human, gpt, function_call, observation, ...)"

_TEXT_PARTS = ("text", "input_text", "output_text")
"""Kinds of content parts: of chat completions, and both of OpenAI's newer responses."""

_MAY_BE_MUTE = ("system", "tool")
"""An empty system prompt is not the template's own one, and some tools return nothing."""


def read_turns(value: object, place: str) -> list[dict[str, Any]]:
    """Read a list of turns; a list of plain texts is a user and an assistant by turns.

    Returns:
        Messages with `role` (system, user, assistant or tool), `content` as text, and whatever
        else they had that is not null; `tool_calls` with their arguments as objects.

    Raises:
        ValueError: A turn has an unknown role or no content, or the turns are in no order that a
            conversation can have.
    """
    items = read_list(value, place)
    if not items:
        raise EmptyTextError(f"`{place}` is empty")
    if all(isinstance(item, str) for item in items):
        roles = ("user", "assistant")
        items = [{"role": roles[n % 2], "content": item} for n, item in enumerate(items)]
    turns = [_read_turn(item, place, number) for number, item in enumerate(items)]
    check_order(turns, place)
    return turns


def check_order(turns: list[dict[str, Any]], place: str) -> None:
    """Refuse turns in an order that no conversation has.

    Raises:
        ValueError: A system turn after the start, two user or assistant turns in a row, or the
            result of a tool that nobody called.
    """
    before: dict[str, Any] = {"role": "system"}
    for number, turn in enumerate(turns):
        role, last = turn["role"], before["role"]
        if role == "system" and last != "system":
            problem = "a system turn can stand at the start only"
        elif role == last and role in ("user", "assistant"):
            problem = f"two {role} turns in a row"
        elif role == "tool" and not _calls_tool(before):
            problem = "the result of a tool, but the turn before calls none"
        else:
            before = turn
            continue
        raise ValueError(f"`{place}[{number}].role`: {problem}")


def build_conversation(
    record: Mapping[str, Any], shape: Shape, turns: list[dict[str, Any]]
) -> Conversation:
    """Add to the turns what the shape's optional columns hold: system prompt, history, tools.

    Raises:
        ValueError: One of these columns is bad, or there are two system prompts.
    """
    before = _read_history(record) if "history" in shape.optional else []
    for column in SYSTEM_COLUMNS:
        value = record.get(column) if column in shape.optional else None
        if is_blank(value):
            continue
        if (before or turns)[0]["role"] == "system":
            raise ValueError(f"`{column}` is a second system prompt")
        before.insert(0, {"role": "system", "content": check_text(value, column)})
    tools = read_tools(record) if TOOL_COLUMNS[0] in shape.optional else None
    return Conversation([*before, *turns], tools)


def _read_history(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    value = record.get("history")
    if is_blank(value):
        return []
    turns = []
    for number, pair in enumerate(read_list(value, "history")):
        place = f"history[{number}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"`{place}` has to be a list of a request and its answer")
        turns.append({"role": "user", "content": check_text(pair[0], f"{place}[0]")})
        turns.append({"role": "assistant", "content": check_text(pair[1], f"{place}[1]")})
    return turns


def _read_turn(item: object, place: str, number: int) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ValueError(
            f"`{place}[{number}]` has to be an object with `role` and `content`, "
            f"not {describe_kind(item)}"
        )
    others = {name: value for name, value in item.items() if value is not None}
    role_key = "from" if "from" in others and "role" not in others else "role"
    content_key = "value" if "value" in others and "content" not in others else "content"
    role = _read_role(others.pop(role_key, None), f"{place}[{number}].{role_key}")
    content = others.pop(content_key, None)
    here = f"{place}[{number}].{content_key}"
    if role == _CALL:
        return {"role": "assistant", "content": "", "tool_calls": read_calls(content, here)}
    calls = _pop_calls(others, f"{place}[{number}]") if role == "assistant" else []
    may_be_blank = bool(calls) or role in _MAY_BE_MUTE
    said = _read_content(content, here, may_be_blank=may_be_blank)
    turn: dict[str, Any] = {"role": role, "content": said}
    if calls:
        turn["tool_calls"] = calls
    if others:
        turn.update(copy_nested(others, f"{place}[{number}]", keep_nulls=False))
    return turn


def _read_role(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"`{place}` has to be a role, not {describe_kind(value)}")
    role = _ROLES.get(value) or _ROLES.get(value.strip().lower())
    if role is None:
        near = suggest(value[:60], _ROLES)
        raise ValueError(f"`{place}` is {value[:60]!r}, no known role{near}; known: {_SHOWN_ROLES}")
    return role


def _read_content(value: object, place: str, *, may_be_blank: bool) -> str:
    if isinstance(value, list):
        value = "".join([_read_part(part, f"{place}[{n}]") for n, part in enumerate(value)])
    if not may_be_blank:
        return check_text(value, place)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"`{place}` has to be text, not {describe_kind(value)}")
    check_unicode(value, place)
    return value


def _read_part(part: object, place: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise ValueError(f"`{place}` has to be an object, not {describe_kind(part)}")
    kind, text = part.get("type", "text"), part.get("text")
    if kind not in _TEXT_PARTS:
        shown = repr(kind[:40]) if isinstance(kind, str) else describe_kind(kind)
        raise ValueError(f"`{place}.type` is {shown}; only text can be trained on")
    if not isinstance(text, str):
        raise ValueError(f"`{place}.text` has to be text, not {describe_kind(text)}")
    return text


def _pop_calls(fields: dict[Any, Any], place: str) -> list[dict[str, Any]]:
    calls = []
    for key in ("tool_calls", "function_call"):
        value = fields.pop(key, None)
        if value:
            calls += read_calls(value, f"{place}.{key}")
    return calls


def _calls_tool(turn: dict[str, Any]) -> bool:
    if turn["role"] == "tool" or turn.get("tool_calls"):
        return True
    # Some data have the call in the words: as JSON, in tags, or as code.
    return turn["role"] == "assistant" and any(mark in turn["content"] for mark in "{[<(")

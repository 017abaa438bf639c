"""Tools, calls of tools and their arguments, from the ways people write them to OpenAI's.

Nulls that stand in JSON text are the author's and stay; those in columns are a file's filling.
"""

from collections.abc import Mapping
from typing import Any

from bigft.data.formats.checks import copy_nested, describe_kind, is_blank, parse_json, read_list
from bigft.data.formats.shape import TOOL_COLUMNS


def read_tools(record: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Read the tools that a conversation may use; None when there are none.

    Raises:
        ValueError: They are no list of descriptions with a name.
    """
    for column in TOOL_COLUMNS:
        value = record.get(column)
        if is_blank(value):
            continue
        tools = []
        for number, item in enumerate(read_list(value, column)):
            place = f"{column}[{number}]"
            tool = parse_json(item, place) if isinstance(item, str) else item
            is_json = isinstance(value, str) or tool is not item
            tools.append(_build_tool(_copy_object(tool, place, keep_nulls=is_json), place))
        return tools or None
    return None


def read_calls(value: object, place: str) -> list[dict[str, Any]]:
    """Read calls of tools; arguments in JSON text become objects, as templates expect them.

    Raises:
        ValueError: A call has no name, or its arguments are no object.
    """
    is_json = isinstance(value, str)
    parsed = parse_json(value, place) if isinstance(value, str) else value
    items = [parsed] if isinstance(parsed, dict) else read_list(parsed, place)
    calls = []
    for number, item in enumerate(items):
        inner = f"{place}[{number}]"
        calls.append(_build_call(_copy_object(item, inner, keep_nulls=is_json), inner))
    return calls


def _build_tool(tool: dict[str, Any], place: str) -> dict[str, Any]:
    if "function" not in tool:
        tool = {"type": "function", "function": tool}
    _check_function(tool["function"], place)
    return tool


def _build_call(call: dict[str, Any], place: str) -> dict[str, Any]:
    inner = f"{place}.function" if "function" in call else place
    function = call.get("function", call)
    _check_function(function, inner)
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        arguments = parse_json(arguments, f"{inner}.arguments") if arguments.strip() else None
    arguments = {} if arguments is None else arguments
    checked = _copy_object(arguments, f"{inner}.arguments", keep_nulls=True)
    identity = {"id": call["id"]} if "id" in call else {}
    named = {"name": function["name"], "arguments": checked}
    return {**identity, "type": "function", "function": named}


def _copy_object(value: object, place: str, *, keep_nulls: bool) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"`{place}` has to be an object, not {describe_kind(value)}")
    copied: dict[str, Any] = copy_nested(value, place, keep_nulls=keep_nulls)
    return copied


def _check_function(function: object, place: str) -> None:
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"`{place}` has no `name`")

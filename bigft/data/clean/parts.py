"""The texts an example is made of, each with the role of the one who says it.

Raw text and the texts of a labelled example have the role `text`; a prompt is the `user`'s and its
answer the `assistant`'s; messages have their own roles. Labels, tools and calls of tools are no
texts: they are names and code that have to stay as they are.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

from bigft.data.example import Conversation, Example, Labelled, PromptAnswer, Text

_ROLES: dict[type, dict[str, str]] = {
    Text: {"text": "text"},
    PromptAnswer: {"prompt": "user", "answer": "assistant"},
    Labelled: {"text": "text", "second": "text"},
}

# What chat templates write of a message; the latter three are three families' names of one thing.
_SPOKEN = ("content", "reasoning_content", "reasoning", "thinking")


def map_texts(
    example: Example, function: Callable[[str], str], roles: Collection[str] | None = None
) -> Example:
    """Replace each text by what `function` makes of it.

    Args:
        example: Never changed itself.
        function: Called once per text, in order.
        roles: Whose texts; absent: everyone's.

    Returns:
        A new example, or this very object when every text stays equal.
    """
    if isinstance(example, Conversation):
        messages = [_map_message(message, function, roles) for message in example.messages]
        pairs = zip(messages, example.messages, strict=True)
        others = _map_others(example, function, roles)
        if all(new is old for new, old in pairs) and others == example.others:
            return example
        return replace(example, messages=messages, others=others)
    changed: dict[str, Any] = {}
    for name, role in _ROLES[type(example)].items():
        text = getattr(example, name)
        if text is not None and (roles is None or role in roles):
            new = function(text)
            if new != text:
                changed[name] = new
    if isinstance(example, PromptAnswer):
        others = _map_others(example, function, roles)
        changed |= {"others": others} if others != example.others else {}
    return replace(example, **changed) if changed else example


def _map_others(
    example: PromptAnswer | Conversation,
    function: Callable[[str], str],
    roles: Collection[str] | None,
) -> tuple[str, ...]:
    """Map other right answers, so that they stay comparable with the one that is learned."""
    if roles is not None and "assistant" not in roles:
        return example.others
    return tuple(map(function, example.others))


def find_texts(example: Example, roles: Collection[str] | None = None) -> Iterator[str]:
    """Find the texts of an example, in order, of everyone or of these roles."""
    if isinstance(example, Conversation):
        for message in example.messages:
            if roles is None or message.get("role") in roles:
                for name in _SPOKEN:
                    yield from _find_in_value(message.get(name))
        return
    for name, role in _ROLES[type(example)].items():
        text = getattr(example, name)
        if text is not None and (roles is None or role in roles):
            yield text


def _map_message(
    message: dict[str, Any], function: Callable[[str], str], roles: Collection[str] | None
) -> dict[str, Any]:
    if roles is not None and message.get("role") not in roles:
        return message
    changed = {}
    for name in _SPOKEN:
        value = message.get(name)
        if value is not None:
            new = _map_value(value, function)
            if new != value:
                changed[name] = new
    return {**message, **changed} if changed else message


def _map_value(value: Any, function: Callable[[str], str]) -> Any:
    """Map the text of a message, or the texts of its list of `{"type": "text", "text": ...}`."""
    if isinstance(value, str):
        return function(value)
    if isinstance(value, list):
        return [
            {**part, "text": function(part["text"])} if _is_text_part(part) else part
            for part in value
        ]
    return value


def _find_in_value(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield from (part["text"] for part in value if _is_text_part(part))


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)

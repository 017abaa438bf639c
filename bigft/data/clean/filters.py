"""Which examples are left out for what they say."""

import re

from bigft.data.clean.parts import find_texts
from bigft.data.example import Conversation, Example, PromptAnswer


def is_empty(example: Example) -> bool:
    """Whether nothing is said, or nothing by the assistant where it has a turn.

    A turn that calls a tool says something.
    """
    if isinstance(example, PromptAnswer):
        return not (example.prompt.strip() and example.answer.strip())
    if isinstance(example, Conversation):
        return _is_silent(example)
    return not any(text.strip() for text in find_texts(example))


def is_lacking(example: Example, pattern: re.Pattern[str]) -> bool:
    """Whether the pattern is not found in the example's text."""
    return pattern.search(join_texts(example)) is None


def is_matching(example: Example, pattern: re.Pattern[str]) -> bool:
    """Whether the pattern is found in the example's text."""
    return pattern.search(join_texts(example)) is not None


def join_texts(example: Example) -> str:
    """Join all texts of an example, one per line or more; labels and calls are not among them."""
    return "\n".join(find_texts(example))


def _is_silent(example: Conversation) -> bool:
    turns = [message for message in example.messages if message.get("role") == "assistant"]
    speakers = turns or example.messages
    if any(message.get("tool_calls") for message in speakers):
        return False
    roles = {"assistant"} if turns else None
    return not any(text.strip() for text in find_texts(example, roles))

"""What every data format is turned into, before any tokenizer is known."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Text:
    """Raw text; every token of it is learned."""

    text: str


@dataclass(frozen=True)
class PromptAnswer:
    """A text and its continuation, tokenised as they stand, without a chat template."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """Turns of a chat in OpenAI's form, rendered with the tokenizer's chat template."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Labelled:
    """A text, or a pair of texts, with a label; a causal language model learns to write it."""

    text: str
    label: str | int | float
    second: str | None = None
    """The other text of a pair."""


Example = Text | PromptAnswer | Conversation | Labelled


def compute_digest(example: Example) -> int:
    """Compute a 64-bit number from what the example says, the same for every tokenizer."""
    content = json.dumps([type(example).__name__, asdict(example)], sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "little")

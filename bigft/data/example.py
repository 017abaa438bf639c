"""What every data format is turned into, before any tokenizer is known."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


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


_COPY = 1
"""The lowest bit of a digest marks changed copies, which are trained on but never held out."""


def compute_digest(example: Example) -> int:
    """Compute a 64-bit number from what the example says, the same for every tokenizer.

    The lowest bit is 0: see `mark_copy`.
    """
    content = json.dumps([type(example).__name__, vars(example)], sort_keys=True, default=str)
    found = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(found, "little") & ~_COPY


def mark_copy(digest: int) -> int:
    """Give a changed copy of an example the example's digest, marked as a copy's."""
    return digest | _COPY


def find_copies(digests: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Find the rows whose digests are marked as those of changed copies."""
    return (digests & np.uint64(_COPY)).astype(np.bool_)

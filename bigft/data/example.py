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
    others: tuple[str, ...] = ()
    """Other answers that are right as well: not learned, only compared with."""


@dataclass(frozen=True)
class Conversation:
    """Turns of a chat in OpenAI's form, rendered with the tokenizer's chat template."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    others: tuple[str, ...] = ()
    """Other answers than the last one that are right as well: not learned, only compared with."""


Label = str | int | float
"""A class by its name or number, or a number to predict."""


@dataclass(frozen=True)
class Labelled:
    """A text, or a pair of texts, with a label; a language model learns to write it."""

    text: str
    label: Label | list[Label]
    """A list has all labels that apply, maybe none, or several numbers to predict."""

    second: str | None = None
    """The other text of a pair."""


Example = Text | PromptAnswer | Conversation | Labelled


def write_label(label: Label | list[Label]) -> str:
    """Write a label as a language model learns to."""
    parts = label if isinstance(label, list) else [label]
    # An answer without any words would be learned as the end of the text alone.
    return ", ".join(map(str, parts)) or "none"


def list_references(example: Example, answer: str) -> tuple[str, ...]:
    """List all answers to an example that are right.

    Args:
        example: Holds the others.
        answer: The one that is learned.
    """
    others = example.others if isinstance(example, PromptAnswer | Conversation) else ()
    return (answer, *others)


_COPY_BITS = 0x1F
"""The lowest bits of a digest: 0 for an example, the number of a changed copy otherwise."""


def compute_digest(example: Example) -> int:
    """Compute a 64-bit number from what the example says, the same for every tokenizer.

    Its five lowest bits are 0: see `mark_copy`.
    """
    # Other right answers are no part of what is learned, or else rows with them would change sides.
    said = {name: value for name, value in vars(example).items() if name != "others"}
    content = json.dumps([type(example).__name__, said], sort_keys=True, default=str)
    found = hashlib.blake2b(content.encode(), digest_size=8).digest()
    return int.from_bytes(found, "little") & ~_COPY_BITS


def mark_copy(digest: int, number: int) -> int:
    """Give changed copy `number` (1 to 31) of an example the example's digest, marked."""
    return digest | number


def find_copies(digests: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Find the rows that come from changed copies."""
    marked: npt.NDArray[np.bool_] = (digests & np.uint64(_COPY_BITS)) != 0
    return marked


def find_originals(digests: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Give the digest of the example that each row, or changed copy, comes from."""
    return digests & ~np.uint64(_COPY_BITS)

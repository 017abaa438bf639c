"""The seam between the data and a task: how its examples lie in rows.

A row is one run of integers, each marked as read or as learned, so that one store, one order and
one cursor serve every task. What is learned may be tokens of the text itself (`next_token`,
`masked`), tokens of another text behind it (`source_target`), or numbers behind it (`targets`).
Rows need no torch; `bigft.data.loading.batches` makes tensors of them.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from bigft.data.example import Example
from bigft.data.section import DataSection
from bigft.data.tokens.prompts import Prompt
from bigft.data.tokens.tokenize import OverlongError, Row, Tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Counts = npt.NDArray[np.integer[Any]]


class Layout(Protocol):
    """How a task's examples lie in rows."""

    learns: str
    """What the terms of the loss are, for people: `supervised` tokens, `labels`, ..."""

    def describe(self) -> str:
        """Say all that rows depend on beside the tokenizer and the settings of the data."""

    def tokenize(self, examples: Sequence[Example]) -> list[Tokenized | ValueError]:
        """Turn examples into rows, or into the reason why there is none."""

    def count(self, learned: Counts) -> Counts:
        """Say how many terms the loss of each row has, from its number of learned entries."""

    def count_tokens(self, entries: Counts) -> Counts:
        """Say how many tokens each row has, from its number of entries."""

    def show(self, row: Row) -> tuple[Row, str]:
        """Split a row into the part that is tokens, and words for the rest."""


@runtime_checkable
class PromptLayout(Protocol):
    """A layout whose models write answers."""

    def build_prompts(self, examples: Sequence[Example]) -> list[Prompt | ValueError]:
        """Turn examples into what the model reads, or into the reason why there is none."""


BuildLayout = Callable[["PreTrainedTokenizerBase", DataSection], Layout]


def choose_pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Choose what fills up sequences: a token that nothing attends to or learns."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(token) for token in candidates if token is not None)


def judge_length(num_tokens: int, section: DataSection) -> str:
    """Say what becomes of an example that is never split: `keep`, `truncate` or `drop`.

    Raises:
        OverlongError: It is longer than allowed, and that was to be an error.
    """
    if num_tokens <= section.max_length:
        return "keep"
    if section.overlong == "error":
        raise OverlongError(num_tokens, section.max_length)
    return "drop" if section.overlong == "drop" else "truncate"

"""Rows of which each learned token is predicted from those before it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bigft.data.example import Example
from bigft.data.layouts.layout import Counts, choose_pad_id
from bigft.data.section import DataSection
from bigft.data.tokens.prompts import Prompt, build_prompts
from bigft.data.tokens.tokenize import Row, Tokenized, tokenize_batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class NextToken:
    """The text with its learned tokens marked; several rows may share a sequence."""

    learns = "supervised"

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", section: DataSection) -> None:
        """Take the tokenizer of the model, and what to do with long rows."""
        self._tokenizer = tokenizer
        self._section = section
        self.pad_id = choose_pad_id(tokenizer)
        self.max_length = section.max_length
        self.is_packed = section.packing != "none"

    def describe(self) -> str:
        """Return nothing: the settings of the data say all."""
        return ""

    def tokenize(self, examples: Sequence[Example]) -> list[Tokenized | ValueError]:
        """See `tokenize_batch`."""
        section = self._section
        return tokenize_batch(
            examples,
            self._tokenizer,
            train_on=section.train_on,
            max_length=section.max_length,
            overlong=section.overlong,
        )

    def build_prompts(self, examples: Sequence[Example]) -> list[Prompt | ValueError]:
        """See `bigft.data.tokens.prompts`; what is longer than `max_length` is left out."""
        return [self._judge(found) for found in build_prompts(examples, self._tokenizer)]

    def _judge(self, found: Prompt | ValueError) -> Prompt | ValueError:
        longest = self._section.max_length
        if isinstance(found, Prompt) and len(found.input_ids) > longest:
            # Cut off, it would lose its question or the words that ask for an answer.
            return ValueError(f"a prompt of {len(found.input_ids)} tokens; --max_length {longest}")
        if isinstance(found, Prompt) and not len(found.input_ids):
            return ValueError("a prompt without a token")
        return found

    def count(self, learned: Counts) -> Counts:
        """Return the same numbers."""
        return learned

    def count_tokens(self, entries: Counts) -> Counts:
        """Return the same numbers: all entries are tokens."""
        return entries

    def show(self, row: Row) -> tuple[Row, str]:
        """Return the row: all of it is tokens."""
        return row, ""

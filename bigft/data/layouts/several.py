"""Rows of several tasks in one table: each part of the data has the layout of its task."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bigft.data.example import Example
from bigft.data.layouts.layout import BuildLayout, Counts, Layout, choose_pad_id
from bigft.data.section import DataSection
from bigft.data.tokens.tokenize import Row, Tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Several:
    """The layouts of the parts of the data, by their names, in their order."""

    learns = "terms"

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", parts: dict[str, Layout]) -> None:
        """Take the layouts; part n of the data has the n-th."""
        self.parts = parts
        self.pad_id = choose_pad_id(tokenizer)

    def describe(self) -> str:
        """Describe all of them."""
        return "; ".join(f"{name}: {part.describe()}" for name, part in self.parts.items())

    def tokenize(self, examples: Sequence[Example]) -> list[Tokenized | ValueError]:
        """Refuse: `choose_layout` finds the one that can."""
        raise NotImplementedError

    def count(self, learned: Counts) -> Counts:
        """Refuse: see `bigft.data.counts`."""
        raise NotImplementedError

    def count_tokens(self, entries: Counts) -> Counts:
        """Refuse: see `bigft.data.counts`."""
        raise NotImplementedError

    def show(self, row: Row) -> tuple[Row, str]:
        """Show a row as its task does."""
        return list(self.parts.values())[row.source].show(row)


def choose_layout(
    lay_out: BuildLayout, name: str, tokenizer: "PreTrainedTokenizerBase", section: DataSection
) -> Layout:
    """Build the layout of one part of the data: its own, or that of all."""
    layout = lay_out(tokenizer, section)
    return layout.parts[name] if isinstance(layout, Several) else layout

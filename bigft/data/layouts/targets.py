"""Rows of a text, or a pair of texts, with its label as numbers behind it.

tokens | tokens of the first text | label
read              read           | learned
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bigft.data.example import Example, Labelled
from bigft.data.layouts.coders import Coder
from bigft.data.layouts.layout import Counts, choose_pad_id, judge_length
from bigft.data.section import DataSection
from bigft.data.tokens.encode import TokenIds
from bigft.data.tokens.tokenize import Row, Tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NO_LABEL = (
    "a row without a label, which this task learns: it needs columns such as `text` + `label` or"
    " `sentence1` + `sentence2` + `label` (others: --data.columns.text COLUMN"
    " --data.columns.label COLUMN)"
)


@dataclass(frozen=True)
class Parts:
    """A row, taken apart."""

    tokens: TokenIds
    num_first: int
    """Tokens of the first text of a pair, with what the tokenizer puts around it."""
    label: TokenIds
    """As its coder has written it."""


class Targets:
    """A text and its label; every row is a sequence of its own."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", section: DataSection, coder: Coder
    ) -> None:
        """Take how labels are written."""
        self._tokenizer = tokenizer
        self._section = section
        self.pad_id = choose_pad_id(tokenizer)
        self.max_length = section.max_length
        self.coder = coder
        self.learns = "numbers" if coder.is_float else "labels"
        self.has_types = "token_type_ids" in tokenizer.model_input_names

    def describe(self) -> str:
        """Describe the labels."""
        return f"targets {self.coder.describe()}"

    def tokenize(self, examples: Sequence[Example]) -> list[Tokenized | ValueError]:
        """Encode texts and labels; what is too long is cut off as the tokenizer does it."""
        results: list[Tokenized | ValueError] = []
        for example in examples:
            try:
                results.append(self._tokenize_one(example))
            except ValueError as error:
                results.append(error)
        return results

    def _tokenize_one(self, example: Example) -> Tokenized:
        if not isinstance(example, Labelled):
            raise ValueError(_NO_LABEL)
        label = self.coder.encode(example.label)
        encoded = self._encode(example)
        num_tokens = len(encoded["input_ids"])
        verdict = judge_length(num_tokens, self._section)
        if verdict == "drop":
            return Tokenized([], num_tokens, is_overlong=True)
        if verdict == "truncate":
            encoded = self._encode(example, truncation=True, max_length=self._section.max_length)
        tokens = encoded["input_ids"]
        types = encoded.get("token_type_ids") or []
        first = types.index(1) if 1 in types else len(tokens)
        row = Row(
            np.concatenate([np.array([*tokens, first], dtype=np.int32), label]),
            np.arange(len(tokens) + 1 + len(label)) > len(tokens),
            is_truncated=verdict == "truncate",
        )
        return Tokenized([row], num_tokens, is_overlong=verdict == "truncate")

    def _encode(self, example: Labelled, **options: Any) -> Any:
        texts = [example.text] if example.second is None else [example.text, example.second]
        tokenizer = self._tokenizer
        added = tokenizer.num_special_tokens_to_add
        if len(texts) > 1 and added(pair=True) == added(pair=False):
            # Nothing would stand between the two.
            texts = ["\n".join(texts)]
        return tokenizer(*texts, verbose=False, **options)

    def count(self, learned: Counts) -> Counts:
        """Return the same numbers: each label, or each number of it, is a term."""
        return learned

    def count_tokens(self, entries: Counts) -> Counts:
        """Leave out the two entries or more behind the text."""
        return entries - (1 + self.coder.size)

    def split(self, row: Row) -> Parts:
        """Take a row apart."""
        tokens, first, label = np.split(row.input_ids, [-self.coder.size - 1, -self.coder.size])
        return Parts(tokens, int(first[0]), label)

    def show(self, row: Row) -> tuple[Row, str]:
        """Name the label."""
        parts = self.split(row)
        text = Row(parts.tokens, np.zeros(len(parts.tokens), dtype=np.bool_))
        return text, f"label: {self.coder.decode(parts.label)}"

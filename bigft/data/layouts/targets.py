"""Rows of a text, or a pair of texts, with its label as numbers behind it.

tokens | tokens of the first text | label
read              read           | learned
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bigft.data.example import Example, Labelled
from bigft.data.layouts.coders import Coder
from bigft.data.layouts.layout import Counts, choose_pad_id, judge_length
from bigft.data.layouts.pad import name_sources, pad
from bigft.data.loading.collate import IGNORED, Batch
from bigft.data.section import DataSection
from bigft.data.tokens.tokenize import Row, Tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NO_LABEL = (
    "a row without a label, which this task learns: it needs columns such as `text` + `label` or"
    " `sentence1` + `sentence2` + `label` (others: --data.columns.text COLUMN"
    " --data.columns.label COLUMN)"
)


class Targets:
    """A text and its label; every row is a sequence of its own."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", section: DataSection, coder: Coder
    ) -> None:
        """Take how labels are written."""
        self._tokenizer = tokenizer
        self._section = section
        self._coder = coder
        self._has_types = "token_type_ids" in tokenizer.model_input_names

    def describe(self) -> str:
        """Describe the labels."""
        return f"targets {self._coder.describe()}"

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
        label = self._coder.encode(example.label)
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

    def collate(self, items: Sequence[Sequence[Row]], num_sources: int) -> Batch:
        """Pad the texts on the right and stack the labels, `(B, size)`."""
        size = self._coder.size
        nothing = np.zeros(0, dtype=np.int32)
        rows = [item[0].input_ids if item else nothing for item in items]
        input_ids, mask = pad(
            [row[: -size - 1] for row in rows],
            fill=choose_pad_id(self._tokenizer),
            longest=self._section.max_length,
        )
        labels = self._stack_labels(rows)
        types = None
        if self._has_types:
            places = torch.arange(input_ids.shape[1])
            first = [int(row[-size - 1]) if len(row) else input_ids.shape[1] for row in rows]
            types = (places >= torch.tensor(first)[:, None]).long() * mask
        sources = name_sources(items, labels) if num_sources > 1 else None
        return Batch(input_ids, labels, None, mask, sources, num_sources, types)

    def _stack_labels(self, rows: Sequence[Any]) -> torch.Tensor:
        kind = np.float32 if self._coder.is_float else np.int64
        ignored = np.nan if self._coder.is_float else IGNORED
        labels = np.full((len(rows), self._coder.size), ignored, dtype=kind)
        for number, row in enumerate(rows):
            if len(row):
                label = row[-self._coder.size :]
                labels[number] = label.view(np.float32) if self._coder.is_float else label
        return torch.from_numpy(labels)

    def show(self, row: Row) -> tuple[Row, str]:
        """Name the label."""
        size = self._coder.size
        text = Row(row.input_ids[: -size - 1], row.supervised[: -size - 1])
        return text, f"label: {self._coder.decode(row.input_ids[-size:])}"

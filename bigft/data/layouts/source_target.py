"""Rows of two texts: the encoder reads the first, the decoder learns to write the second.

tokens of the source | tokens of the target
read         |       learned
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bigft.data.example import (
    Conversation,
    Example,
    Labelled,
    PromptAnswer,
    list_references,
    write_label,
)
from bigft.data.layouts.layout import Counts, choose_pad_id, judge_length
from bigft.data.section import DataSection
from bigft.data.tokens.encode import TokenIds, encode_texts
from bigft.data.tokens.prompts import Prompt
from bigft.data.tokens.tokenize import Row, Tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ONE_TEXT = (
    "one text, but this task learns a target from a source: it needs columns such as `source` +"
    " `target`, `prompt` + `completion` or `document` + `summary` (others: --data.columns.source"
    " COLUMN --data.columns.target COLUMN)"
)


class SourceTarget:
    """Two texts; every row is a pair of sequences of its own."""

    learns = "in targets"

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", section: DataSection, prefix: str
    ) -> None:
        """Take what is put before each source."""
        self._tokenizer = tokenizer
        self._section = section
        self._prefix = prefix
        self.pad_id = choose_pad_id(tokenizer)
        self.max_length = section.max_length

    def describe(self) -> str:
        """Describe the prefix."""
        return f"source_target {self._prefix!r}"

    def tokenize(self, examples: Sequence[Example]) -> list[Tokenized | ValueError]:
        """Encode both sides, each at most `max_length` tokens long."""
        found: dict[int, tuple[str, str]] = {}
        results: dict[int, Tokenized | ValueError] = {}
        for number, example in enumerate(examples):
            try:
                found[number] = split_example(example)
            except ValueError as error:
                results[number] = error
        encode = self._encode
        sources = encode([self._prefix + source for source, _ in found.values()])
        targets = encode([target for _, target in found.values()])
        for number, source, target in zip(found, sources, targets, strict=True):
            try:
                results[number] = self._join(source, target)
            except ValueError as error:
                results[number] = error
        return [results[number] for number in range(len(examples))]

    def build_prompts(self, examples: Sequence[Example]) -> list[Prompt | ValueError]:
        """Encode the sources; longer ones are cut off on the right, as in training."""
        found: list[tuple[str, str] | ValueError] = []
        for example in examples:
            try:
                found.append(split_example(example))
            except ValueError as error:
                found.append(error)
        texts = [self._prefix + one[0] for one in found if not isinstance(one, ValueError)]
        sources = map(self._cut, self._encode(texts))
        return [
            one
            if isinstance(one, ValueError)
            else Prompt(next(sources), list_references(example, one[1]))
            for one, example in zip(found, examples, strict=True)
        ]

    def _encode(self, texts: list[str]) -> list[TokenIds]:
        eos = self._tokenizer.eos_token_id
        return [
            ids if eos is None or (len(ids) and ids[-1] == eos) else np.append(ids, np.int32(eos))
            for ids in encode_texts(texts, self._tokenizer, special=True)
        ]

    def _join(self, source: TokenIds, target: TokenIds) -> Tokenized:
        num_tokens = len(source) + len(target)
        verdict = judge_length(max(len(source), len(target)), self._section)
        if verdict == "drop":
            return Tokenized([], num_tokens, is_overlong=True)
        source, target = self._cut(source), self._cut(target)
        row = Row(
            np.concatenate([source, target]),
            np.arange(len(source) + len(target)) >= len(source),
            is_truncated=verdict == "truncate",
        )
        return Tokenized([row], num_tokens, is_overlong=verdict == "truncate")

    def _cut(self, ids: TokenIds) -> TokenIds:
        """Cut off on the right, but keep what ends it."""
        longest = self._section.max_length
        if len(ids) <= longest:
            return ids
        return np.append(ids[: longest - 1], ids[-1:])

    def count(self, learned: Counts) -> Counts:
        """Return the same numbers: each token of the target is a term."""
        return learned

    def count_tokens(self, entries: Counts) -> Counts:
        """Return the same numbers: all entries are tokens."""
        return entries

    def show(self, row: Row) -> tuple[Row, str]:
        """Return the row: all of it is tokens."""
        return row, ""


def split_example(example: Example) -> tuple[str, str]:
    """Say what is read and what is to be written.

    Of a conversation that is everything before its last turn, and that turn.

    Raises:
        ValueError: There is nothing to be written.
    """
    if isinstance(example, PromptAnswer):
        # The line break that parts a source from its target where both are one text.
        return example.prompt.removesuffix("\n"), example.answer
    if isinstance(example, Labelled):
        texts = (example.text, example.second)
        return "\n".join(t for t in texts if t is not None), write_label(example.label)
    if isinstance(example, Conversation):
        *before, last = example.messages
        if before and last.get("role") == "assistant":
            return "\n".join(map(_read_turn, before)), _read_turn(last)
        raise ValueError("a conversation has to end with a turn of the assistant for this task")
    raise ValueError(_ONE_TEXT)


def _read_turn(message: dict[str, Any]) -> str:
    content = message.get("content")
    if not isinstance(content, str):
        raise ValueError(f"a turn of the {message.get('role')} holds no text; this task reads text")
    return content

"""Rows of which some tokens are hidden, anew in every epoch, and guessed from those around them.

After BERT (Devlin et al., arXiv 1810.04805): of the chosen tokens 80% become the mask token, 10%
another token at random, 10% stay. Each row has exactly its share of chosen tokens, so that the
number of terms of a step's loss is known before its batches are made.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bigft.data.example import Conversation, Example, Labelled, PromptAnswer, Text
from bigft.data.layouts.layout import Counts, choose_pad_id, judge_length
from bigft.data.section import DataSection
from bigft.data.tokens.encode import TokenIds, encode_texts
from bigft.data.tokens.tokenize import Row, Tokenized
from bigft.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Places = npt.NDArray[np.int64]

_SHARE_MASKED, _SHARE_RANDOM = 0.8, 0.1
# How tokenizers write what begins a word, or goes on with one.
_BEGINS = ("\u0120", "\u2581")
_GOES_ON = "##"


class Masked:
    """A text, or a piece of one, of which some tokens are hidden."""

    learns = "hidden"

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        section: DataSection,
        *,
        share: float,
        unit: str,
    ) -> None:
        """Take which share is hidden, and of what: a `token` or a whole `word`.

        Raises:
            DataError: The tokenizer has no mask token, or does not say where words begin.
        """
        if tokenizer.mask_token_id is None:
            raise DataError(
                f"--task masked_lm: {type(tokenizer).__name__} has no mask token; use the tokenizer"
                " of a model that was trained this way (--model.tokenizer)"
            )
        self._tokenizer = tokenizer
        self._section = section
        self.pad_id = choose_pad_id(tokenizer)
        self.max_length = section.max_length
        self._share = share
        self._vocabulary = len(tokenizer)
        self._begins = find_beginnings(tokenizer) if unit == "word" else None
        probe = tokenizer("a", verbose=False)["input_ids"]
        inner = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
        at = next(n for n in range(len(probe)) if probe[n : n + len(inner)] == inner)
        self._before = np.array(probe[:at], dtype=np.int32)
        self._after = np.array(probe[at + len(inner) :], dtype=np.int32)

    def describe(self) -> str:
        """Say that special tokens are never hidden; which others are is decided when they load."""
        return "masked"

    def tokenize(self, examples: Sequence[Example]) -> list[Tokenized | ValueError]:
        """Encode everything that an example says; long ones are split, unless told otherwise."""
        results: list[Tokenized | ValueError] = []
        texts = encode_texts(list(map(_read, examples)), self._tokenizer, special=False)
        for ids in texts:
            try:
                results.append(self._cut(ids))
            except ValueError as error:
                results.append(error)
        return results

    def _cut(self, ids: TokenIds) -> Tokenized:
        around = len(self._before) + len(self._after)
        num_tokens, room = len(ids) + around, self._section.max_length - around
        policy = "split" if self._section.overlong in ("auto", "split") else ""
        verdict = policy or judge_length(num_tokens, self._section)
        if verdict == "drop":
            return Tokenized([], num_tokens, is_overlong=True)
        is_overlong = num_tokens > self._section.max_length
        ends = range(0, len(ids), room) if verdict == "split" else range(1)
        is_cut = is_overlong and verdict == "truncate"
        rows = [self._build_row(ids[start : start + room], is_cut) for start in ends]
        return Tokenized(rows, num_tokens, is_overlong=is_overlong)

    def _build_row(self, ids: TokenIds, is_truncated: bool) -> Row:
        input_ids = np.concatenate([self._before, ids, self._after])
        places = np.arange(len(input_ids)) - len(self._before)
        return Row(input_ids, (places >= 0) & (places < len(ids)), is_truncated)

    def count(self, learned: Counts) -> Counts:
        """Return how many tokens of each row are hidden: its share, rounded, at least one."""
        counts: Counts = np.maximum(1, np.rint(learned * self._share)).astype(np.int64)
        return np.where(learned > 0, counts, 0)

    def count_tokens(self, entries: Counts) -> Counts:
        """Return the same numbers: all entries are tokens."""
        return entries

    def hide(self, row: Row, *, unlearned: int) -> tuple[Places, Places]:
        """Hide tokens of a row.

        Args:
            row: Its `draw` decides which.
            unlearned: The label of what is not hidden.

        Returns:
            Tokens and labels, `(T,)` each.
        """
        generator = np.random.Generator(np.random.PCG64(list(row.draw)))
        ids = row.input_ids.astype(np.int64)
        places = self._choose(row, generator)
        labels = np.full(len(ids), unlearned, dtype=np.int64)
        labels[places] = ids[places]
        fate = generator.random(len(places))
        ids[places[fate < _SHARE_MASKED]] = self._tokenizer.mask_token_id
        is_random = (fate >= _SHARE_MASKED) & (fate < _SHARE_MASKED + _SHARE_RANDOM)
        ids[places[is_random]] = generator.integers(self._vocabulary, size=int(is_random.sum()))
        return ids, labels

    def _choose(self, row: Row, generator: np.random.Generator) -> Places:
        candidates = row.supervised.nonzero()[0]
        wanted = int(self.count(np.array([len(candidates)]))[0])
        if self._begins is None:
            return generator.permutation(candidates)[:wanted]
        is_first = self._begins[row.input_ids[candidates]]
        is_first[:1] = True
        words = np.split(candidates, is_first.nonzero()[0][1:])
        return choose_words([words[n] for n in generator.permutation(len(words))], wanted)

    def show(self, row: Row) -> tuple[Row, str]:
        """Return the row before anything is hidden."""
        return row, ""


def choose_words(words: Sequence[Places], wanted: int) -> Places:
    """Take words in order until there are `wanted` tokens, passing over those that are too long.

    Where no word fits any more, the first that was passed over is taken in part.
    """
    chosen: list[Places] = []
    passed: list[Places] = []
    left = wanted
    for word in words:
        if len(word) > left:
            passed.append(word)
        else:
            chosen.append(word)
            left -= len(word)
        if left == 0:
            break
    return np.concatenate([*chosen, *(word[:left] for word in passed[:1])])


def find_beginnings(tokenizer: "PreTrainedTokenizerBase") -> npt.NDArray[np.bool_]:
    """Say of each token whether a word begins with it, `(vocabulary,)`.

    Raises:
        DataError: The tokens do not show it.
    """
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    if any(token.startswith(_GOES_ON) for token in tokens):
        return np.array([not token.startswith(_GOES_ON) for token in tokens])
    found = np.array([token.startswith(_BEGINS) for token in tokens])
    if not found.any():
        raise DataError(
            f"--task.mask_unit word: the tokens of {type(tokenizer).__name__} do not show where"
            " words begin; use --task.mask_unit token"
        )
    return found


def _read(example: Example) -> str:
    if isinstance(example, Text):
        return example.text
    if isinstance(example, PromptAnswer):
        return example.prompt + example.answer
    if isinstance(example, Labelled):
        return "\n".join(text for text in (example.text, example.second) if text is not None)
    assert isinstance(example, Conversation)
    turns = (message.get("content") for message in example.messages)
    return "\n".join(turn for turn in turns if isinstance(turn, str))

"""From examples to rows of tokens, each token marked as learned or only read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bigft.data.example import (
    Conversation,
    Example,
    Labelled,
    PromptAnswer,
    Text,
    write_label,
)
from bigft.data.tokens.encode import TokenIds, encode_placed, encode_texts
from bigft.data.tokens.marks import Marks, mark_tokens
from bigft.data.tokens.masks import Rendered, Renderer, find_chat_template
from bigft.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "OverlongError",
    "Row",
    "Tokenized",
    "find_chat_template",
    "find_end_token_ids",
    "strip_eos",
    "tokenize_batch",
    "write_labelled",
]


@dataclass(frozen=True)
class Row:
    """Tokens of one example, or of one piece of a long one."""

    input_ids: TokenIds
    """`(T,)`."""

    supervised: Marks
    """`(T,)`; whether the token counts in the loss. Never true for the first one."""

    is_truncated: bool = False
    """Whether tokens were cut off on the right."""

    source: int = 0
    """Number of the part of the data that the row comes from."""

    origin: str = ""
    """Where its raw row stands, as `a.jsonl:3`; empty where a store knows it."""

    draw: tuple[int, ...] = (0,)
    """Seed of what is chosen at random of it each time it is loaded."""

    number: int = -1
    """Of the row among all rows of the data; -1 where it comes from no store."""

    def __len__(self) -> int:
        """Count the tokens."""
        return len(self.input_ids)


@dataclass(frozen=True)
class Tokenized:
    """What became of one example."""

    rows: list[Row]
    """Empty when the example was longer than allowed and is to be left out."""

    num_tokens: int
    """Of the whole example, before anything was cut off, split or left out."""

    is_overlong: bool
    """Whether that was more than `max_length`."""


class OverlongError(ValueError):
    """An example is longer than allowed, and that was to be an error."""

    def __init__(self, num_tokens: int, max_length: int) -> None:
        """Say what can be done instead."""
        super().__init__(
            f"{num_tokens} tokens, more than --max_length {max_length}; raise it, or set "
            "--data.overlong to truncate, split or drop"
        )
        self.num_tokens = num_tokens
        self._max_length = max_length

    def __reduce__(self) -> tuple[type["OverlongError"], tuple[int, int]]:
        """Travel between processes."""
        return OverlongError, (self.num_tokens, self._max_length)


def tokenize_batch(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    train_on: str,
    max_length: int,
    overlong: str = "auto",
) -> list[Tokenized | ValueError]:
    """Turn examples into rows of at most `max_length` tokens.

    A text or a split example becomes several rows; neighbours share one token, so that every token
    but the very first is learned exactly once, where it is learned at all.

    Args:
        examples: Any mixture; a thousand at once keep the tokenizer's threads busy.
        tokenizer: Without a chat template, ChatML is used as plain text.
        train_on: `assistant`, `last_assistant` or `all`; raw text always counts as a whole.
        max_length: Tokens per row, at least 2.
        overlong: `truncate`, `split`, `drop`, `error`, or `auto`: split raw text, truncate others.

    Returns:
        For each example its rows, or why it has none: the chat template refuses it, its rendering
        is no continuation of the rendering without the last turns, or it is an `OverlongError`.

    Raises:
        DataError: The tokenizer cannot do what is needed for any example of this kind.
    """
    found: dict[int, tuple[TokenIds, Marks] | ValueError] = {
        **_tokenize_plain(examples, tokenizer),
        **_tokenize_conversations(examples, tokenizer, train_on),
    }
    results: list[Tokenized | ValueError] = []
    for number, example in enumerate(examples):
        tokens = found[number]
        if isinstance(tokens, ValueError):
            results.append(tokens)
            continue
        input_ids, supervised = tokens
        if train_on == "all" or isinstance(example, Text):
            supervised = np.ones(len(input_ids), dtype=np.bool_)
        policy = overlong
        if overlong == "auto":
            policy = "split" if isinstance(example, Text) else "truncate"
        results.append(_fit(input_ids, supervised, max_length, policy))
    return results


def find_end_token_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Find the tokens after which an answer is over: EOS and the template's end of a turn.

    Generation has to stop at each of them: a chat template may end a turn with a token that is
    not the tokenizer's EOS.
    """
    ends = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if tokenizer.chat_template is not None:
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
        tokens = _tokenize_conversations([Conversation(turns)], tokenizer, "assistant")[0]
        if isinstance(tokens, ValueError):
            raise tokens
        input_ids, supervised = tokens
        last = int(input_ids[supervised][-1])
        if last in _find_special_ids(tokenizer):
            ends.append(last)
    return list(dict.fromkeys(ends))


# Rows of at most so many tokens.


def _fit(
    input_ids: TokenIds, supervised: Marks, max_length: int, policy: str
) -> Tokenized | OverlongError:
    num_tokens = len(input_ids)
    if num_tokens <= max_length:
        return Tokenized([_build_row(input_ids, supervised)], num_tokens, is_overlong=False)
    if policy == "error":
        return OverlongError(num_tokens, max_length)
    rows = []
    if policy == "truncate":
        rows = [_build_row(input_ids[:max_length], supervised[:max_length], is_truncated=True)]
    elif policy == "split":
        for start in range(0, num_tokens - 1, max_length - 1):
            end = start + max_length
            rows.append(_build_row(input_ids[start:end], supervised[start:end]))
    return Tokenized(rows, num_tokens, is_overlong=True)


def _build_row(input_ids: TokenIds, supervised: Marks, *, is_truncated: bool = False) -> Row:
    marks = supervised.copy()
    marks[:1] = False  # Nothing stands before the first token that could predict it.
    return Row(input_ids, marks, is_truncated)


# Texts, prompts with answers, and labels.


def _tokenize_plain(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase"
) -> dict[int, tuple[TokenIds, Marks]]:
    first: dict[int, str] = {}
    answers: dict[int, str] = {}
    for number, example in enumerate(examples):
        if isinstance(example, Text):
            first[number] = example.text
        elif isinstance(example, PromptAnswer):
            first[number], answers[number] = example.prompt, example.answer
        elif isinstance(example, Labelled):
            first[number], answers[number] = write_labelled(example)
    # The two are tokenised apart, for at inference the prompt is tokenised alone.
    heads = encode_texts(list(first.values()), tokenizer, special=True)
    tails = encode_texts(list(answers.values()), tokenizer, special=False)
    found: dict[int, tuple[TokenIds, Marks]] = {}
    eos = tokenizer.eos_token_id  # Kept, for transformers looks it up anew each time.
    tail = dict(zip(answers, tails, strict=True))
    for number, head in zip(first, heads, strict=True):
        if number in tail:
            found[number] = _join(head, tail[number], eos)
        else:
            input_ids = _end_with_eos(head, eos)
            found[number] = input_ids, np.ones(len(input_ids), dtype=np.bool_)
    return found


def write_labelled(example: Labelled) -> tuple[str, str]:
    """Write what a language model reads of a text with a label, and what it learns to write."""
    texts = (example.text, example.second)
    return "".join(f"{text}\n" for text in texts if text is not None), write_label(example.label)


def _join(prompt: TokenIds, answer: TokenIds, eos: int | None) -> tuple[TokenIds, Marks]:
    prompt = strip_eos(prompt, eos)
    input_ids = np.concatenate([prompt, _end_with_eos(answer, eos)])
    return input_ids, np.arange(len(input_ids)) >= len(prompt)


def strip_eos(input_ids: TokenIds, eos: int | None) -> TokenIds:
    """Leave out the EOS that some tokenizers end everything with: what follows would be lost."""
    length = len(input_ids)
    while length and input_ids[length - 1] == eos:
        length -= 1
    return input_ids[:length]


def _end_with_eos(input_ids: TokenIds, eos: int | None) -> TokenIds:
    if eos is None or (len(input_ids) and input_ids[-1] == eos):
        return input_ids
    return np.append(input_ids, np.int32(eos))


# Conversations.


def _tokenize_conversations(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", train_on: str
) -> dict[int, tuple[TokenIds, Marks] | ValueError]:
    found: dict[int, tuple[TokenIds, Marks] | ValueError] = {}
    rendered: dict[int, Rendered] = {}
    renderer: Renderer | None = None
    for number, example in enumerate(examples):
        if isinstance(example, Conversation):
            renderer = renderer or Renderer(tokenizer)
            try:
                rendered[number] = renderer.render(example, train_on)
            except ValueError as error:
                found[number] = error
    if not rendered:
        return found
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} does not say where its tokens stand in the text, which "
            "is needed to train on the assistant's tokens only; use a model with a fast tokenizer "
            "(tokenizer.json)"
        )
    special, eos = _find_special_ids(tokenizer), tokenizer.eos_token_id
    encoded = encode_placed([one.text for one in rendered.values()], tokenizer)
    for (number, one), (input_ids, encoding) in zip(rendered.items(), encoded, strict=True):
        supervised = mark_tokens(one, input_ids, encoding, special)
        if eos is not None and one.ends_learned:
            found[number] = _end_last_turn(input_ids, supervised, special, int(eos), tokenizer)
        else:
            found[number] = input_ids, supervised
    return found


def _end_last_turn(
    input_ids: TokenIds,
    supervised: Marks,
    special: set[int],
    eos: int,
    tokenizer: "PreTrainedTokenizerBase",
) -> tuple[TokenIds, Marks]:
    """Add EOS, learned, unless the last turn already ends with a special token."""
    if not supervised.any():
        return input_ids, supervised
    last = len(supervised) - 1 - int(supervised[::-1].argmax())
    if not special.isdisjoint(input_ids[last:].tolist()):
        return input_ids, supervised
    # EOS has to follow what the model said itself, not the line break that a template adds.
    if not str(tokenizer.decode(input_ids[last + 1 :])).strip():
        input_ids, supervised = input_ids[: last + 1], supervised[: last + 1]
    return np.append(input_ids, np.int32(eos)), np.append(supervised, np.True_)


def _find_special_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    added = tokenizer.added_tokens_decoder.items()
    return set(tokenizer.all_special_ids) | {number for number, token in added if token.special}

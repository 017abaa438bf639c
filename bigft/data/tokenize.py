"""From one example to rows of tokens, each token marked as learned or only read.

The marks of a conversation come from the template's own rendering. Either the template says which
characters the assistant speaks (`{% generation %}`), or the conversation is rendered up to each
assistant turn, and the difference between the two renderings is that turn:

    messages[:k], generation prompt <|im_start|>user Hi<|im_end|><|im_start|>assistant
    messages[:k + 1]                <|im_start|>user Hi<|im_end|><|im_start|>assistant Yes<|im_end|>
    learned                                                                            Yes<|im_end|>

Where the first is not the beginning of the second there is no exact answer: that is an error.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bigft.data.chatml import CHATML_TEMPLATE
from bigft.data.example import Conversation, Example, PromptAnswer, Text
from bigft.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Letters only: templates trim white space, and no message says this.
_PROBE = "BIGFTxPROBExWORD"

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Row:
    """Tokens of one example, or of one piece of a long text."""

    input_ids: npt.NDArray[np.int32]
    """`(T,)`."""

    supervised: npt.NDArray[np.bool_]
    """`(T,)`; whether the token counts in the loss. Never true for the first one."""

    is_truncated: bool = False
    """Whether tokens were cut off on the right."""

    source: int = 0
    """Number of the part of the data that the row comes from."""

    def __len__(self) -> int:
        """Count the tokens."""
        return len(self.input_ids)


def tokenize(
    example: Example, tokenizer: "PreTrainedTokenizerBase", *, train_on: str, max_length: int
) -> list[Row]:
    """Turn an example into rows of at most `max_length` tokens.

    A text that is too long becomes several rows; neighbours share one token, so that every token
    but the very first is learned exactly once. Anything else is cut off on the right.

    Args:
        example: What to tokenise.
        tokenizer: A fast tokenizer; without a chat template, ChatML is used as plain text.
        train_on: `assistant` or `all`; raw text always counts as a whole.
        max_length: Tokens per row, at least 2.

    Raises:
        ValueError: The chat template refuses the conversation, or its rendering is no
            continuation of the rendering without the last turns.
        DataError: The tokenizer cannot do what is needed for any example of this kind.
    """
    if isinstance(example, Text):
        return _split(_tokenize_text(example, tokenizer), max_length)
    if isinstance(example, PromptAnswer):
        input_ids, supervised = _tokenize_prompt_answer(example, tokenizer)
    else:
        input_ids, supervised = _tokenize_conversation(example, tokenizer)
    if train_on == "all":
        supervised = [True] * len(input_ids)
    is_truncated = len(input_ids) > max_length
    return [_build_row(input_ids[:max_length], supervised[:max_length], is_truncated)]


def find_chat_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Find the template that conversations are rendered with: the tokenizer's own, or ChatML."""
    template: str | None = tokenizer.chat_template
    return CHATML_TEMPLATE if template is None else template


def find_end_token_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Find the tokens after which an answer is over: EOS and the template's end of a turn.

    Generation has to stop at each of them: a chat template may end a turn with a token that is
    not the tokenizer's EOS.
    """
    ends = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if tokenizer.chat_template is not None:
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
        input_ids, supervised = _tokenize_conversation(Conversation(turns), tokenizer)
        last = max(position for position, learned in enumerate(supervised) if learned)
        if input_ids[last] in _find_special_ids(tokenizer):
            ends.append(input_ids[last])
    return list(dict.fromkeys(ends))


def _build_row(input_ids: list[int], supervised: list[bool], is_truncated: bool) -> Row:
    marks = np.array(supervised, dtype=np.bool_)
    marks[:1] = False  # Nothing stands before the first token that could predict it.
    return Row(np.array(input_ids, dtype=np.int32), marks, is_truncated)


def _split(input_ids: list[int], max_length: int) -> list[Row]:
    starts = range(0, max(1, len(input_ids) - 1), max_length - 1)
    pieces = [input_ids[start : start + max_length] for start in starts]
    return [_build_row(piece, [True] * len(piece), False) for piece in pieces]


def _tokenize_text(example: Text, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    return _end_with_eos(_encode(tokenizer, example.text, special=True), tokenizer)


def _tokenize_prompt_answer(
    example: PromptAnswer, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[int], list[bool]]:
    # The two are tokenised apart, for at inference the prompt is tokenised alone.
    prompt = _encode(tokenizer, example.prompt, special=True)
    while prompt and prompt[-1] == tokenizer.eos_token_id:
        prompt.pop()  # Some tokenizers end everything with EOS by themselves.
    answer = _end_with_eos(_encode(tokenizer, example.answer, special=False), tokenizer)
    return prompt + answer, [False] * len(prompt) + [True] * len(answer)


def _tokenize_conversation(
    example: Conversation, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[int], list[bool]]:
    if _GENERATION_TAG.search(find_chat_template(tokenizer)):
        rendered = _render(
            example,
            tokenizer,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"verbose": False},
        )
        input_ids = list(rendered["input_ids"])
        supervised = [bool(mark) for mark in rendered["assistant_masks"]]
    else:
        input_ids, supervised = _mark_by_prefixes(example, tokenizer)
    if example.messages[-1]["role"] == "assistant":
        _end_last_turn(input_ids, supervised, tokenizer)
    return input_ids, supervised


def _mark_by_prefixes(
    example: Conversation, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[int], list[bool]]:
    full = _render(example, tokenizer, tokenize=False)
    spans = []
    for turn, message in enumerate(example.messages):
        if message["role"] != "assistant":
            continue
        if turn == 0:
            raise ValueError(
                "the assistant speaks first, and this chat template has no {% generation %} tags "
                "that would tell its words from the template's"
            )
        before = Conversation(example.messages[:turn], example.tools)
        through = Conversation(example.messages[: turn + 1], example.tools)
        prompt = _render(before, tokenizer, tokenize=False, add_generation_prompt=True)
        rendered = _render(through, tokenizer, tokenize=False)
        if rendered.startswith(prompt) and full.startswith(rendered):
            spans.append((len(prompt), len(rendered)))
        else:
            spans.append(_find_rewritten_turn(example, turn, prompt, full, tokenizer))
    return _mark_spans(full, spans, tokenizer)


def _find_rewritten_turn(
    example: Conversation,
    turn: int,
    prompt: str,
    full: str,
    tokenizer: "PreTrainedTokenizerBase",
) -> tuple[int, int]:
    """Find an assistant turn that its template renders otherwise once other messages follow.

    Qwen3's template, for one, drops the reasoning of all turns but the last. What counts is how
    the turn looks in the whole conversation. A probe in place of its words shows where the text
    behind them begins (`rest`), and how much of that still belongs to the turn (`ending`):

        whole, probed    ...assistant  PROBE <|im_end|> <|im_start|>user Thanks<|im_end|>
                                             ^ rest
        through, probed  ...assistant  <think></think> PROBE <|im_end|>
                                                             ^ ending
        whole            ...assistant  Yes <|im_end|> <|im_start|>user Thanks<|im_end|>
        learned                        Yes <|im_end|>

    Raises:
        ValueError: The turn cannot be told apart exactly even so.
    """
    probed = [dict(message) for message in example.messages]
    probed[turn]["content"] = _PROBE
    whole = _render(Conversation(probed, example.tools), tokenizer, tokenize=False)
    through = _render(Conversation(probed[: turn + 1], example.tools), tokenizer, tokenize=False)
    rest, ending = whole.partition(_PROBE)[2], through.partition(_PROBE)[2]
    end = len(full) - len(rest) + len(ending)
    fits = whole.count(_PROBE) == through.count(_PROBE) == 1 and rest.startswith(ending)
    if not (fits and full.startswith(prompt) and full.endswith(rest) and end >= len(prompt)):
        raise ValueError(
            f"the chat template renders message {turn + 1} differently when other messages "
            "follow, so the assistant's tokens cannot be told apart exactly; give a template "
            "with {% generation %} tags with --model.chat_template, or set --data.train_on all"
        )
    return len(prompt), end


def _mark_spans(
    text: str, spans: list[tuple[int, int]], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[int], list[bool]]:
    """Mark the tokens that start inside a span of characters."""
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} does not say where its tokens stand in the text, which "
            "is needed to train on the assistant's tokens only; use a model with a fast tokenizer "
            "(tokenizer.json)"
        )
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    input_ids: list[int] = list(encoding["input_ids"])
    places: list[tuple[int, int]] = encoding["offset_mapping"]
    supervised = [False] * len(input_ids)
    special = _find_special_ids(tokenizer)
    for start, end in spans:
        inside = [
            n for n, (first, last) in enumerate(places) if start <= first < end and last > first
        ]
        # The end-of-turn token is the last thing that the model says. What the template puts
        # after it (a line break) is never generated.
        ends = [n for n in inside if input_ids[n] in special]
        if ends and not text[places[ends[-1]][1] : end].strip():
            inside = [n for n in inside if n <= ends[-1]]
        for n in inside:
            supervised[n] = True
    return input_ids, supervised


def _end_last_turn(
    input_ids: list[int], supervised: list[bool], tokenizer: "PreTrainedTokenizerBase"
) -> None:
    """Add EOS, learned, unless the last turn already ends with a special token."""
    if tokenizer.eos_token_id is None or True not in supervised:
        return
    last = len(supervised) - 1 - supervised[::-1].index(True)
    special = _find_special_ids(tokenizer)
    if any(token in special for token in input_ids[last:]):
        return
    # EOS has to follow what the model said itself, not the line break that a template adds.
    if not str(tokenizer.decode(input_ids[last + 1 :])).strip():
        del input_ids[last + 1 :], supervised[last + 1 :]
    input_ids.append(int(tokenizer.eos_token_id))
    supervised.append(True)


def _render(example: Conversation, tokenizer: "PreTrainedTokenizerBase", **options: Any) -> Any:
    import jinja2

    try:
        return tokenizer.apply_chat_template(
            example.messages,
            tools=list(example.tools) if example.tools else None,
            chat_template=find_chat_template(tokenizer),
            **options,
        )
    except (jinja2.TemplateError, TypeError) as error:
        raise ValueError(f"the chat template refuses the conversation: {error}") from error


def _encode(tokenizer: "PreTrainedTokenizerBase", text: str, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def _end_with_eos(input_ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    eos = tokenizer.eos_token_id
    return input_ids if eos is None or input_ids[-1:] == [eos] else [*input_ids, int(eos)]


def _find_special_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    added = tokenizer.added_tokens_decoder.items()
    return set(tokenizer.all_special_ids) | {number for number, token in added if token.special}

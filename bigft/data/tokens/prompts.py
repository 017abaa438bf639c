"""From examples to what a language model is asked, and the answer that was wanted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bigft.data.example import (
    Conversation,
    Example,
    Labelled,
    PromptAnswer,
    list_references,
)
from bigft.data.tokens.encode import TokenIds, encode_placed, encode_texts
from bigft.data.tokens.masks import Renderer
from bigft.data.tokens.tokenize import strip_eos, write_labelled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NO_ANSWER = (
    "one text without an answer; rows to be answered have columns such as `prompt` + `completion`,"
    " `source` + `target` or `messages`"
)


@dataclass(frozen=True)
class Prompt:
    """What a model reads before it writes an answer of its own."""

    input_ids: TokenIds
    """`(T,)`."""

    references: tuple[str, ...]
    """Answers that are right, at least one."""


def build_prompts(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase"
) -> list[Prompt | ValueError]:
    """Write the prompts of a language model, token by token as in training.

    Of a conversation the last turn of the assistant is to be answered, and all before it is read,
    with the words that the chat template puts before an answer.

    Args:
        examples: Any mixture.
        tokenizer: Without a chat template, ChatML is used as plain text.

    Returns:
        For each example its prompt, or why it has none.
    """
    found: dict[int, Prompt | ValueError] = {}
    plain: dict[int, tuple[str, str]] = {}
    rendered: dict[int, tuple[str, str]] = {}
    renderer: Renderer | None = None
    for number, example in enumerate(examples):
        try:
            if isinstance(example, Conversation):
                renderer = renderer or Renderer(tokenizer)
                rendered[number] = _render(example, renderer)
            else:
                plain[number] = _split(example)
        except ValueError as error:
            found[number] = error
    texts = [text for text, _ in plain.values()]
    eos = tokenizer.eos_token_id
    for number, ids in zip(plain, encode_texts(texts, tokenizer, special=True), strict=True):
        references = list_references(examples[number], plain[number][1])
        found[number] = Prompt(strip_eos(ids, eos), references)
    # The template has written the special tokens.
    texts = [text for text, _ in rendered.values()]
    for number, (ids, _) in zip(rendered, _encode_rendered(texts, tokenizer), strict=True):
        found[number] = Prompt(ids, list_references(examples[number], rendered[number][1]))
    return [found[number] for number in range(len(examples))]


def _split(example: Example) -> tuple[str, str]:
    if isinstance(example, PromptAnswer):
        return example.prompt, example.answer
    if isinstance(example, Labelled):
        return write_labelled(example)
    raise ValueError(_NO_ANSWER)


def _render(example: Conversation, renderer: Renderer) -> tuple[str, str]:
    turns = [n for n, message in enumerate(example.messages) if message["role"] == "assistant"]
    if not turns or turns[-1] == 0:
        raise ValueError("a conversation without a turn of the assistant that answers something")
    answer = example.messages[turns[-1]].get("content")
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError("the last turn of the assistant holds no text to compare with")
    return renderer.render_prompt(example, turns[-1]), answer


def _encode_rendered(texts: list[str], tokenizer: "PreTrainedTokenizerBase") -> Any:
    if tokenizer.is_fast:
        return encode_placed(texts, tokenizer)
    return [(ids, None) for ids in encode_texts(texts, tokenizer, special=False)]

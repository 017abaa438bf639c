"""From a conversation to its text, and to the characters in it that the assistant speaks.

They come from the template's own rendering. Either the template says which characters they are
(`{% generation %}`), or the conversation is rendered up to each assistant turn, and the difference
between the two renderings is that turn:

    messages[:k], generation prompt <|im_start|>user Hi<|im_end|><|im_start|>assistant
    messages[:k + 1]                <|im_start|>user Hi<|im_end|><|im_start|>assistant Yes<|im_end|>
    learned                                                                            Yes<|im_end|>

Most templates put the same words before and behind every turn of the assistant. What these are is
found once with a probe; where the whole conversation's text shows them around each turn's words,
one rendering is enough.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from bigft.data.example import Conversation
from bigft.data.tokens.templates import CHATML_TEMPLATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Letters only: templates trim white space, and no message says this.
_PROBE = "BIGFTxPROBExWORD"

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PLAIN_KEYS = frozenset(("role", "content", "weight"))

# What a template's expressions can raise on messages that it was not written for.
_TEMPLATE_FAULTS = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError)

Span = tuple[int, int]
"""First character and the one behind the last."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as its template writes it."""

    text: str
    spans: list[Span]
    """What the assistant says and is to be learned, in order."""

    is_tagged: bool
    """Whether the template marked the spans itself, to the character."""

    ends_learned: bool
    """Whether the last message is an assistant's that is to be learned."""


@dataclass(frozen=True)
class _Frame:
    """What a template without tags writes around each turn of the assistant."""

    header: str
    footer: str


class Renderer:
    """Renders conversations with a tokenizer's chat template, or with ChatML if it has none."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Read what the template may use of the tokenizer, once for many conversations."""
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        # What `apply_chat_template` calls; it alone says where the tags are in the text.
        self._render = render_jinja_template
        self._faults = (jinja2.TemplateError, *_TEMPLATE_FAULTS)
        self._tokenizer = tokenizer
        self._variables = dict(tokenizer.special_tokens_map)
        self._frames: dict[str, _Frame | None] = {}

    def render(self, example: Conversation, train_on: str) -> Rendered:
        """Render a conversation and mark what is to be learned.

        Args:
            example: At least one message.
            train_on: `assistant`, `last_assistant` or `all`, where the spans are as for
                `assistant`. A message with `weight` 0 is never learned.

        Raises:
            ValueError: The template refuses the conversation, or its rendering is no continuation
                of the rendering without the last turns.
        """
        template = find_chat_template(self._tokenizer, example.tools)
        turns = [n for n, message in enumerate(example.messages) if _is_assistant(message)]
        chosen = turns[-1:] if train_on == "last_assistant" else turns
        chosen = [turn for turn in chosen if example.messages[turn].get("weight") != 0]
        is_tagged = _is_tagged(template)
        if is_tagged:
            text, spans = self._write_tagged(template, example, len(example.messages))
            if chosen != turns:
                spans = self._pick_tagged(template, example, turns, chosen, spans)
        else:
            text = self._write(template, example)
            spans = self._find_spans(template, example, turns, chosen, text)
        ends_learned = len(example.messages) - 1 in chosen
        return Rendered(text, spans, is_tagged, ends_learned)

    def render_prompt(self, example: Conversation, turn: int) -> str:
        """Render what stands before message `turn`, an assistant's, when it is to be written.

        Raises:
            ValueError: The template refuses the conversation.
        """
        template = find_chat_template(self._tokenizer, example.tools)
        return self._write(template, example, turn, add_generation_prompt=True)

    # Templates with tags.

    def _write_tagged(
        self, template: str, example: Conversation, count: int
    ) -> tuple[str, list[Span]]:
        text, spans = self._call(template, example, example.messages[:count], marked=True)
        return text, [tuple(span) for span in spans if span[1] > span[0]]

    def _pick_tagged(
        self,
        template: str,
        example: Conversation,
        turns: list[int],
        chosen: list[int],
        spans: list[Span],
    ) -> list[Span]:
        if len(spans) == len(turns):
            return [span for span, turn in zip(spans, turns, strict=True) if turn in chosen]
        # Several pairs of tags in one turn: count those of the conversation up to the turn.
        picked = []
        for turn in chosen:
            before = len(self._write_tagged(template, example, turn)[1]) if turn else 0
            through = len(self._write_tagged(template, example, turn + 1)[1])
            picked += spans[before:through]
        return picked

    # Templates without tags.

    def _find_spans(
        self,
        template: str,
        example: Conversation,
        turns: list[int],
        chosen: Collection[int],
        full: str,
    ) -> list[Span]:
        frame = self._find_frame(template)
        places = _find_headers(frame, example, len(turns), full) if frame else None
        spans = []
        for order, turn in enumerate(turns):
            if turn not in chosen:
                continue
            span = None
            if frame and places:
                span = _find_framed(frame, example.messages[turn], places[order], full)
            spans.append(span or self._find_span(template, example, turn, full))
        return spans

    def _find_frame(self, template: str) -> _Frame | None:
        if template not in self._frames:
            try:
                self._frames[template] = self._probe_frame(template)
            except ValueError:  # A template may refuse the probe for reasons of its own.
                self._frames[template] = None
        return self._frames[template]

    def _probe_frame(self, template: str) -> _Frame | None:
        user, said = ({"role": role, "content": _PROBE} for role in ("user", "assistant"))
        probe = Conversation([user, said, user])
        asked = self._write(template, probe, 1)
        prompt = self._write(template, probe, 1, add_generation_prompt=True)
        footer = self._write(template, probe, 2).rpartition(_PROBE)[2]
        frame = _Frame(prompt[len(asked) :], footer)
        is_plain = prompt.startswith(asked) and frame.header.strip() != ""
        follows = self._write(template, probe).startswith(f"{prompt}{_PROBE}{footer}")
        return frame if is_plain and follows else None

    def _find_span(self, template: str, example: Conversation, turn: int, full: str) -> Span:
        """Find one turn by the difference of two renderings."""
        if turn == 0:
            raise ValueError(
                "the assistant speaks first, and this chat template has no {% generation %} tags "
                "that would tell its words from the template's"
            )
        prompt = self._write(template, example, turn, add_generation_prompt=True)
        is_last = turn == len(example.messages) - 1
        through = full if is_last else self._write(template, example, turn + 1)
        if through.startswith(prompt) and full.startswith(through):
            return len(prompt), len(through)
        return self._find_rewritten_turn(template, example, turn, prompt, full)

    def _find_rewritten_turn(
        self, template: str, example: Conversation, turn: int, prompt: str, full: str
    ) -> Span:
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
        messages = [dict(message) for message in example.messages]
        messages[turn]["content"] = _PROBE
        probed = Conversation(messages, example.tools)
        whole = self._write(template, probed)
        through = self._write(template, probed, turn + 1)
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

    def _write(
        self,
        template: str,
        example: Conversation,
        count: int | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        messages = example.messages[:count]
        return self._call(template, example, messages, add_generation_prompt=add_generation_prompt)[
            0
        ]

    def _call(
        self,
        template: str,
        example: Conversation,
        messages: list[dict[str, Any]],
        *,
        marked: bool = False,
        add_generation_prompt: bool = False,
    ) -> tuple[str, list[Any]]:
        try:
            texts, spans = self._render(
                conversations=[messages],
                tools=example.tools,
                chat_template=template,
                return_assistant_tokens_mask=marked,
                add_generation_prompt=add_generation_prompt,
                **self._variables,
            )
        except self._faults as error:
            raise ValueError(f"the chat template refuses the conversation: {error}") from error
        return texts[0], spans[0] if marked else []


def find_chat_template(
    tokenizer: "PreTrainedTokenizerBase", tools: list[dict[str, Any]] | None = None
) -> str:
    """Find the template that conversations are rendered with: the tokenizer's own, or ChatML.

    Args:
        tokenizer: It may have several templates by name.
        tools: Conversations with tools get the template for tools, where there is one.

    Raises:
        ValueError: There are several templates and none is the default.
    """
    if tokenizer.chat_template is None:
        return CHATML_TEMPLATE
    template: str = tokenizer.get_chat_template(None, tools or None)
    return template


@lru_cache
def _is_tagged(template: str) -> bool:
    return _GENERATION_TAG.search(template) is not None


def _is_assistant(message: dict[str, Any]) -> bool:
    return bool(message["role"] == "assistant")


def _find_headers(
    frame: _Frame, example: Conversation, num_turns: int, full: str
) -> list[int] | None:
    """Find the ends of the headers, if there is exactly one for each turn of the assistant."""
    if any(frame.header in message["content"] for message in example.messages):
        return None
    places = [found.end() for found in re.finditer(re.escape(frame.header), full)]
    return places if len(places) == num_turns else None


def _find_framed(frame: _Frame, message: dict[str, Any], start: int, full: str) -> Span | None:
    """Find a turn behind its header, if its words and the footer stand there and nothing else."""
    if not _PLAIN_KEYS.issuperset(message):
        return None
    content = message["content"]
    for words in (content, content.strip()):
        if words and full.startswith(words + frame.footer, start):
            return start, start + len(words) + len(frame.footer)
    return None

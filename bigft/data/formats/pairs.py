"""A request and its answer in two columns.

`prompt` + `completion` is a text and its continuation and stays as it is written (what TRL does
with these two columns). All other pairs are a user's turn and the assistant's, so they get the
chat template. A side may also be a list of turns.

Of several accepted answers (SQuAD's `{"text": [...], "answer_start": [...]}`) the first is learned;
metrics of what a model answers know all of them.
A question of SQuAD 2.0 without any is a row with no text to learn, like one with an empty answer:
what a model should say then is not for us to make up.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from bigft.data.example import Conversation, PromptAnswer
from bigft.data.formats.checks import (
    EmptyTextError,
    check_text,
    describe_kind,
    is_blank,
    split_answers,
)
from bigft.data.formats.shape import SYSTEM_COLUMNS, Shape
from bigft.data.formats.turns import build_conversation, check_order, read_turns

NAME = "pairs"

_REQUESTS = ("prompt", "question", "query", "problem", "input", "request", "user", "human")
_ANSWERS = ("completion", "response", "answer", "output", "solution", "reply", "assistant")
_OTHERS = (
    ("context", "response"),
    ("input", "target"),
    ("inputs", "targets"),
    ("question", "answers"),
)
_OPTIONAL = ("context", "history", *SYSTEM_COLUMNS)
_CONTINUATION = ("prompt", "completion")


def _build_shape(request: str, answer: str) -> Shape:
    return Shape((request, answer), tuple(name for name in _OPTIONAL if name != request))


SHAPES = tuple(_build_shape(*pair) for pair in [*product(_REQUESTS, _ANSWERS), *_OTHERS])


def fits(record: Mapping[str, Any], shape: Shape) -> bool:
    """Whether both sides are text or turns."""
    request, answer = (record[column] for column in shape.needed)
    if not (isinstance(request, str) or _holds_turns(request)):
        return False
    chosen, _ = split_answers(answer)
    return isinstance(chosen, str) or chosen == [] or _holds_turns(answer)


def read(record: Mapping[str, Any], shape: Shape) -> PromptAnswer | Conversation:
    """Turn one record into an example; a context stands before its question.

    Raises:
        ValueError: A column is empty or not text, or a turn is bad.
    """
    request_column, answer_column = shape.needed
    request = record.get(request_column)
    answer, others = split_answers(record.get(answer_column))
    if answer == []:
        raise EmptyTextError(
            f"`{answer_column}` is empty: a question without an answer; --data.clean.empty drop "
            'leaves such rows out, or write one yourself ("unanswerable")'
        )
    if shape.needed == _CONTINUATION and isinstance(request, str) and isinstance(answer, str):
        return replace(_read_continuation(record, request, answer), others=others)
    turns = [
        *_read_side(request, request_column, "user"),
        *_read_side(answer, answer_column, "assistant"),
    ]
    check_order(turns, " + ".join(shape.needed))
    if "context" in shape.optional and not is_blank(record.get("context")):
        turns = _add_context(turns, check_text(record["context"], "context"))
    return replace(build_conversation(record, shape, turns), others=others)


def _read_continuation(record: Mapping[str, Any], prompt: str, completion: str) -> PromptAnswer:
    for column in _OPTIONAL:
        if not is_blank(record.get(column)):
            raise ValueError(
                f"`{column}` has no place in a raw `prompt` + `completion`; for a conversation "
                "set --data.columns.response completion"
            )
    return PromptAnswer(check_text(prompt, "prompt"), check_text(completion, "completion"))


def _read_side(value: object, column: str, role: str) -> list[dict[str, Any]]:
    if _holds_turns(value):
        return read_turns(value, column)
    if isinstance(value, list | dict):
        raise ValueError(
            f"`{column}` has to be text or a list of turns, not {describe_kind(value)}"
        )
    return [{"role": role, "content": check_text(value, column)}]


def _add_context(turns: list[dict[str, Any]], context: str) -> list[dict[str, Any]]:
    for number, turn in enumerate(turns):
        if turn["role"] == "user":
            filled = {**turn, "content": f"{context}\n\n{turn['content']}"}
            return [*turns[:number], filled, *turns[number + 1 :]]
    raise ValueError("`context` needs a user's turn to stand before")


def _holds_turns(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)

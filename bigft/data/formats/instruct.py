"""One request and its answer in two or three columns.

`prompt` + `completion` is a text and its continuation and stays as it is written (what TRL does
with these two columns). All other pairs are a user's turn and the assistant's, so they get the
chat template.
"""

from collections.abc import Collection, Mapping
from typing import Any

from bigft.data.example import Conversation, PromptAnswer
from bigft.data.formats.text import check_unicode, read_text

NAME = "instruct"
COLUMNS = ("prompt", "completion", "response", "answer", "question", "instruction", "output")

_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("instruction", "output"),
    ("instruction", "response"),
)


def matches(columns: set[str]) -> bool:
    """Whether records with these columns hold a request and its answer."""
    return len(_find_pairs(columns)) > 0


def read(record: Mapping[str, Any]) -> PromptAnswer | Conversation:
    """Turn one record into an example.

    Raises:
        ValueError: A column is empty or not text, or two readings are possible.
    """
    pairs = _find_pairs(record.keys())
    if len(pairs) > 1:
        # Columnar files fill absent columns with null.
        pairs = _find_pairs({name for name, value in record.items() if value is not None}) or pairs
    if len(pairs) > 1:
        found = ", ".join(f"`{request}` + `{answer}`" for request, answer in pairs)
        raise ValueError(f"{len(pairs)} readings are possible: {found}; remove a column")
    request_column, answer_column = pairs[0]
    request, answer = read_text(record, request_column), read_text(record, answer_column)
    if answer_column == "completion":
        return PromptAnswer(request, answer)

    context = record.get("input") if request_column == "instruction" else None
    if context is not None and not isinstance(context, str):
        raise ValueError(f"`input` has to be text, not {type(context).__name__}: {context!r:.60}")
    if context and context.strip():
        check_unicode(context, "input")
        request = f"{request}\n\n{context}"
    turns = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
    return Conversation(turns)


def _find_pairs(columns: Collection[str]) -> list[tuple[str, str]]:
    return [pair for pair in _PAIRS if pair[0] in columns and pair[1] in columns]

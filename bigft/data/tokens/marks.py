"""From the characters that are learned to the tokens that are."""

from bisect import bisect_left, bisect_right
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from bigft.data.tokens.encode import TokenIds
from bigft.data.tokens.masks import Rendered, Span

Marks = npt.NDArray[np.bool_]


def mark_tokens(rendered: Rendered, input_ids: TokenIds, encoding: Any, special: set[int]) -> Marks:
    """Mark the tokens of what the assistant says.

    A token that reaches over the start of a span counts: for many tokenizers the space that a
    template puts before a word is part of the word's token.

    Args:
        rendered: The text and its spans.
        input_ids: `(T,)`, of this text.
        encoding: The `tokenizers` library's, of this text.
        special: Tokens that can end a turn.

    Returns:
        `(T,)`.
    """
    supervised = np.zeros(len(input_ids), dtype=np.bool_)
    for span in rendered.spans:
        first, behind = _find_tokens(span, encoding, rendered.text)
        if not rendered.is_tagged:
            behind = _end_with_turn(span, first, behind, rendered, input_ids, encoding, special)
        supervised[first:behind] = True
    return supervised


def _end_with_turn(
    span: Span,
    first: int,
    behind: int,
    rendered: Rendered,
    input_ids: TokenIds,
    encoding: Any,
    special: set[int],
) -> int:
    """Leave out white space behind the last special token of a span.

    The end-of-turn token is the last thing that the model says. What the template puts after it (a
    line break) is never generated.
    """
    tokens = input_ids[first:behind].tolist()
    last = next((n for n in range(len(tokens) - 1, -1, -1) if tokens[n] in special), None)
    if last is None:
        return behind
    end_of_turn = encoding.token_to_chars(first + last)[1]
    return behind if rendered.text[end_of_turn : span[1]].strip() else first + last + 1


def _find_tokens(span: Span, encoding: Any, text: str) -> tuple[int, int]:
    """Find the first token of a span and the one behind its last."""
    start, end = span
    first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
    if first is None or last is None:
        return _find_among_all(span, encoding.offsets, text)
    behind = last + 1
    # A character may be several tokens, of which `last` is the first.
    while behind < len(encoding) and encoding.token_to_chars(behind)[0] < end:
        behind += 1
    return first, behind


def _find_among_all(span: Span, offsets: list[tuple[int, int]], text: str) -> tuple[int, int]:
    """Find them where a span begins or ends with a character that no token stands for.

    Some tokenizers trim white space from the places of their tokens, so that a line's indentation
    stands for no characters, at its own end.
    """
    start, end = span
    first = bisect_right(offsets, start, key=itemgetter(1))
    behind = max(first, bisect_left(offsets, end, key=itemgetter(0)))
    while text[end - 1].isspace() and offsets[behind : behind + 1] == [(end, end)]:
        behind += 1
    return first, behind

"""Questions on docstrings that are answered by words of the docstring: the columns of SQuAD."""

import re
from collections.abc import Iterator

from bigft.data.sources.derived.rows import Row, keep_first, read_short_docstrings
from bigft.data.sources.derived.sentences import find_end

_ERROR = r"\b([A-Z]\w*(?:Error|Exception|Warning|Exit|Interrupt|Iteration))\b[`'\"]*"
_RAISES = re.compile(rf"\b(?:[Rr]aises?|[Rr]aising)\s+(?:an?\s+|the\s+)?[`'\"]*{_ERROR}")
_IS_RAISED = re.compile(rf"{_ERROR}\s+(?:is|are|will\s+be|gets)\s+(?:also\s+)?raised\b")
_WHEN = re.compile(r"\s+(?:if|when|whenever)\s+")
_RETURNS = re.compile(
    r"(?:\bReturns?|\breturns)\b:?\s+"
    r"(?!(?:values?|codes?|types?|to|from|immediately|without)\b)(?=[\w`'\"*(<\[{])"
)
_ANSWER_CHARACTERS = (2, 300)


def read_reading() -> Iterator[Row]:
    """Read docstrings of functions with one question each and the place of its answer.

    Asked is when the function raises its exception, else which one that is, else what the function
    returns: in this order, for few docstrings answer the first and most the last.
    """
    return keep_first(_read_reading(), "context")


def _read_reading() -> Iterator[Row]:
    for doc in read_short_docstrings():
        found = _ask(doc.name, doc.text) if doc.kind == "function" else None
        if found:
            question, start, end = found
            answers = {"text": [doc.text[start:end]], "answer_start": [start]}
            yield doc.name, {"question": question, "context": doc.text, "answers": answers}


def _ask(name: str, text: str) -> tuple[str, int, int] | None:
    """Find a question that the text answers, and from where to where the answer stands."""
    raised = [*_RAISES.finditer(text), *_IS_RAISED.finditer(text)]
    # With several exceptions, the text has more answers than one.
    if len({found[1] for found in raised}) == 1:
        error = raised[0]
        for found in raised:
            when = _WHEN.match(text, found.end())
            span = when and _find_answer(text, when.end())
            if span:
                return f"When does `{name}` raise `{error[1]}`?", *span
        return f"Which exception does `{name}` raise?", *error.span(1)
    returned = _RETURNS.search(text)
    span = returned and _find_answer(text, returned.end())
    return (f"What does `{name}` return?", *span) if span else None


def _find_answer(text: str, start: int) -> tuple[int, int] | None:
    """Find where an answer ends that reaches to the end of its sentence."""
    answer = text[start : find_end(text, start)].rstrip(" \n\t,;:")
    least, most = _ANSWER_CHARACTERS
    return (start, start + len(answer)) if least <= len(answer) <= most else None

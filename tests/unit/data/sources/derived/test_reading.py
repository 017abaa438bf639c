import re
from collections import Counter

import pytest

from bigft.data.sources.corpus import read_docstrings
from bigft.data.sources.derived.reading import _ask


def test_answers_stand_in_the_context_where_it_says(read_set) -> None:
    docs = {doc.name: doc.text for doc in read_docstrings()}
    for name, record in read_set("reading"):
        assert f"`{name}`" in record["question"]
        assert record["context"] == docs[name]
        (text,), (start,) = record["answers"]["text"], record["answers"]["answer_start"]
        assert text
        assert text == text.strip()
        assert record["context"][start : start + len(text)] == text


def test_three_things_are_asked(read_set) -> None:
    firsts = [re.sub(r"`.*?`", "X", record["question"]) for _, record in read_set("reading")]
    counts = Counter(firsts)
    assert set(counts) == {
        "What does X return?",
        "Which exception does X raise?",
        "When does X raise X?",
    }
    assert min(counts.values()) >= 40


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        ("Returns: the sum of a\nand b. More.", "What does `f` return?", "the sum of a\nand b"),
        ("Open it, and return a file", None, None),
        ("It returns None, e.g. now.\n\nEnd.", "What does `f` return?", "None, e.g. now"),
        ("Return value is -1.", None, None),
        ("Return x.\nRaises ValueError.", "Which exception does `f` raise?", "ValueError"),
        ("A `KeyError` is raised when x is bad!", "When does `f` raise `KeyError`?", "x is bad"),
        ("Raise OSError. OSError is raised if x.y is.", "When does `f` raise `OSError`?", "x.y is"),
        ("Raises KeyError. Raises ValueError if b. Return all", "What does `f` return?", "all"),
        ("Raises KeyError or ValueErrors.", "Which exception does `f` raise?", "KeyError"),
    ],
)
def test_a_question_is_found(text: str, question: str | None, answer: str | None) -> None:
    found = _ask("f", text)
    if question is None:
        assert found is None
        return
    assert found is not None
    asked, start, end = found
    assert (asked, text[start:end]) == (question, answer)

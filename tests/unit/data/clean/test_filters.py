import re

import pytest

from bigft.data.clean.filters import is_empty, is_lacking, is_matching
from bigft.data.example import Conversation, Example, Labelled, PromptAnswer, Text


def chat(*turns: tuple[str, str]) -> Conversation:
    return Conversation([{"role": role, "content": content} for role, content in turns])


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}


@pytest.mark.parametrize(
    "example",
    [
        Text(""),
        Text(" \n\u3000"),
        PromptAnswer("", ""),
        PromptAnswer("a", " "),
        PromptAnswer(" ", "a"),
        Labelled("", "positive"),
        Labelled("\n", 1, " "),
        chat(("user", " ")),
        chat(("user", "a"), ("assistant", "")),
    ],
)
def test_an_example_without_words_is_empty(example: Example) -> None:
    assert is_empty(example)


@pytest.mark.parametrize(
    "example",
    [
        Text(" a"),
        PromptAnswer("a", "b"),
        Labelled("a", ""),
        Labelled("", 1, "b"),
        chat(("user", "a")),
        chat(("user", "a"), ("assistant", "b")),
        chat(("user", "a"), ("assistant", ""), ("user", "b"), ("assistant", "c")),
        Conversation([{"role": "user", "content": "a"}, CALL]),
    ],
)
def test_an_example_with_words_or_calls_is_not_empty(example: Example) -> None:
    assert not is_empty(example)


def test_patterns_are_sought_in_every_text_but_not_in_labels() -> None:
    example = chat(("system", "one"), ("user", "two"), ("assistant", "three"))
    for word in ("one", "two", "three", r"two\s+three"):
        assert is_matching(example, re.compile(word))
        assert not is_lacking(example, re.compile(word))
    assert not is_matching(example, re.compile("four"))
    assert is_lacking(example, re.compile("four"))
    assert is_lacking(Labelled("a", "four"), re.compile("four"))

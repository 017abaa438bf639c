import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigft.data.clean.text import normalize_text, strip_example, strip_text
from bigft.data.example import Conversation, Labelled, PromptAnswer, Text

loose_text = st.text(st.sampled_from(" \t\n\r\u00a0\u3000ab."), max_size=30) | st.text()


@pytest.mark.parametrize(
    ("text", "trimmed"),
    [
        ("  a  ", "a"),
        ("\n\n a \n\n", "a"),
        ("a  \nb\t\nc", "a\nb\nc"),
        ("a\n\n\n\nb\n \n \nc", "a\n\nb\n\nc"),
        ("a\r\nb\r\n", "a\nb"),
        ("\u00a0a\u3000", "a"),
        ("   \n \t ", ""),
        ("", ""),
        ("a\nb", "a\nb"),
        ("def f():\n    return 1\n\n\n\n", "def f():\n    return 1"),
    ],
)
def test_white_space_is_trimmed(text: str, trimmed: str) -> None:
    assert strip_text(text) == trimmed


def test_indentation_stays_also_that_of_the_first_line_of_a_block() -> None:
    block = "    if x:\n        y()\n    z()"
    assert strip_text("\n" + block + "  \n") == block
    assert strip_text("    if x:\n\n        y()") == "    if x:\n\n        y()"
    assert strip_text("   A paragraph\nand its second line") == "A paragraph\nand its second line"


@given(loose_text)
def test_trimming_twice_is_trimming_once_and_loses_no_word(text: str) -> None:
    trimmed = strip_text(text)
    assert strip_text(trimmed) == trimmed
    assert trimmed.split() == text.split()
    assert "\n\n\n" not in trimmed
    assert all(line == line.rstrip() for line in trimmed.split("\n"))


def test_white_space_between_prompt_and_answer_stays() -> None:
    assert strip_example(PromptAnswer("  Q: x  \nA:", " yes  ")) == PromptAnswer("Q: x\nA:", " yes")
    assert strip_example(PromptAnswer("x \n\n", "    y\n    z\n")) == PromptAnswer(
        "x \n\n", "    y\n    z"
    )
    assert strip_example(PromptAnswer(" ", "y")) == PromptAnswer("", "y")
    same = PromptAnswer("A:", " yes")
    assert strip_example(same) is same


@given(loose_text, loose_text)
def test_trimming_a_pair_loses_no_word_and_joins_none(prompt: str, answer: str) -> None:
    trimmed = strip_example(PromptAnswer(prompt, answer))
    assert isinstance(trimmed, PromptAnswer)
    assert (trimmed.prompt + trimmed.answer).split() == (prompt + answer).split()
    assert strip_example(trimmed) is trimmed


def test_every_other_kind_of_example_is_trimmed_text_by_text() -> None:
    assert strip_example(Text(" a ")) == Text("a")
    assert strip_example(Labelled(" a ", " b ", " c ")) == Labelled("a", " b ", "c")
    chat = Conversation([{"role": "user", "content": " a\n"}])
    assert strip_example(chat) == Conversation([{"role": "user", "content": "a"}])


@given(st.text(), st.sampled_from(["nfc", "nfkc"]))
def test_normalising_twice_is_normalising_once(text: str, form: str) -> None:
    once = normalize_text(text, form)  # type: ignore[arg-type]
    assert normalize_text(once, form) == once  # type: ignore[arg-type]
    assert unicodedata.is_normalized(form.upper(), once)  # type: ignore[arg-type]


def test_the_two_forms_differ_as_unicode_says() -> None:
    assert normalize_text("e\u0301 \ufb01 \u00b2", "nfc") == "\u00e9 \ufb01 \u00b2"
    assert normalize_text("e\u0301 \ufb01 \u00b2", "nfkc") == "\u00e9 fi 2"

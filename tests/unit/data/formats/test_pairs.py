from dataclasses import replace
from typing import Any

import pytest

from bigft.data.example import Conversation, PromptAnswer, compute_digest
from bigft.data.formats import pairs
from bigft.data.formats.checks import EmptyTextError
from bigft.data.formats.shape import Shape
from bigft.data.formats.table import Recognizer


def read(record: dict[str, Any], *columns: str) -> PromptAnswer | Conversation:
    shape: Shape = next(shape for shape in pairs.SHAPES if shape.needed == columns)
    return pairs.read(record, shape)


def talk(*contents: str) -> Conversation:
    roles = ["user", "assistant"] * len(contents)
    return Conversation([{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)])


def test_prompt_and_completion_stay_plain() -> None:
    record = {"prompt": "1 + 1 =", "completion": " 2"}
    assert read(record, "prompt", "completion") == PromptAnswer("1 + 1 =", " 2")


def test_prompt_and_completion_as_lists_of_turns_are_a_conversation() -> None:
    record = {
        "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
        "completion": [{"role": "assistant", "content": "Hello"}],
    }
    example = read(record, "prompt", "completion")
    assert example == Conversation([*record["prompt"], *record["completion"]])


def test_a_grade_school_question_is_a_users_turn() -> None:
    record = {
        "question": "Natalia sold clips to 48 friends in April, and half as many in May. How many?",
        "answer": "In May 48/2 = <<48/2=24>>24. In all 48+24 = <<48+24=72>>72.\n#### 72",
    }
    assert read(record, "question", "answer") == talk(*record.values())


def test_a_system_prompt_stands_first() -> None:
    record = {"id": "cot.1", "system_prompt": "Think.", "question": "Why?", "response": "So."}
    example = read(record, "question", "response")
    system = {"role": "system", "content": "Think."}
    assert example == Conversation([system, *talk("Why?", "So.").messages])


def test_a_question_on_a_text_has_the_text_before_it() -> None:
    record = {
        "id": "5733be28",
        "title": "University_of_Notre_Dame",
        "context": "Atop the Main Building is a golden statue.",
        "question": "What is on the Main Building?",
        "answers": {"text": ["a golden statue", "a statue"], "answer_start": [26, 28]},
    }
    asked = "Atop the Main Building is a golden statue.\n\nWhat is on the Main Building?"
    # The first is learned, and all are right.
    expected = replace(talk(asked, "a golden statue"), others=("a statue",))
    assert read(record, "question", "answers") == expected
    assert Recognizer().read(record) == ("pairs", expected)
    assert compute_digest(expected) == compute_digest(talk(asked, "a golden statue"))


@pytest.mark.parametrize(
    ("columns", "first"),
    [
        (("prompt", "completion"), PromptAnswer("Q", "a b")),
        (("source", "target"), PromptAnswer("Q\n", "a b")),
        (("question", "answer"), None),
        (("instruction", "output"), None),
    ],
)
def test_of_a_list_of_answers_the_first_is_learned(
    columns: tuple[str, str], first: PromptAnswer | None
) -> None:
    answers = ["a b", "c", "a b", " ", "c"]
    example = Recognizer().read(dict(zip(columns, ("Q", answers), strict=True)))[1]
    assert example == replace(first or talk("Q", "a b"), others=("c",))
    with pytest.raises(ValueError, match=f"`{columns[1]}` has to be text"):
        Recognizer().read(dict(zip(columns, ("Q", ["a", 3]), strict=True)))


def test_a_question_without_an_answer_is_a_row_without_text() -> None:
    # As SQuAD 2.0 has them.
    record = {
        "id": "5ad39d53",
        "title": "Normans",
        "context": "The Normans were the people who gave their name to Normandy.",
        "question": "What is France a region of?",
    }
    for answers in ({"text": [], "answer_start": []}, {"text": []}, []):
        with pytest.raises(EmptyTextError, match=r"`answers` is empty: a question without .* drop"):
            Recognizer().read({**record, "answers": answers})


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "Q", "completion": None}, "`completion` has to be text, not null"),
        ({"prompt": " ", "completion": "A"}, "`prompt` is empty"),
        ({"prompt": {"a": 1}, "completion": "A"}, "`prompt` has to be text or a list of turns"),
        ({"prompt": "Q", "completion": [3]}, "`completion` has to be text or a list of turns"),
        (
            {"prompt": "Q", "completion": "A", "system": "S"},
            "`system` has no place in a raw .* --data.columns.response completion",
        ),
        (
            {"prompt": "Q", "completion": [{"role": "user", "content": "A"}]},
            "two user turns in a row",
        ),
    ],
)
def test_bad_rows_are_refused_with_the_reason(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read(record, "prompt", "completion")

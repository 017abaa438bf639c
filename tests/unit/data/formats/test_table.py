import pickle
from typing import Any

import pytest

from bigft.data.example import Conversation, Labelled, PromptAnswer, Text
from bigft.data.formats.table import FORMATS, Recognizer, load_format
from bigft.errors import DataError

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SHARED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


@pytest.mark.parametrize(
    ("record", "name"),
    [
        # As well-known data sets have them.
        ({"prompt": "Hi", "prompt_id": "1", "messages": TALK, "category": "Chat"}, "chat"),
        ({"source": "x", "problem": "Hi", "solution": "Hello", "messages": TALK}, "chat"),
        ({"conversation": TALK, "model": "m", "language": "en"}, "chat"),
        ({"conversations": TALK}, "chat"),
        ({"conversations": ["Hi", "Hello"], "source": "web"}, "chat"),
        ({"messages": TALK, "text": "<s>Hi Hello"}, "chat"),
        ({"id": "1", "conversations": SHARED, "system": ""}, "sharegpt"),
        ({"instruction": "Hi", "response": "Hello", "conversations": SHARED}, "sharegpt"),
        ({"instruction": "Hi", "input": "", "output": "Hello", "text": "Below is"}, "instruct"),
        ({"instruction": "Hi", "context": "", "response": "Hello", "category": "qa"}, "instruct"),
        ({"instruction": "Hi", "input": "", "output": "Hello", "prompt": "Below is"}, "instruct"),
        ({"prompt": "Hi", "completion": "Hello"}, "pairs"),
        ({"prompt": TALK[:1], "completion": TALK[1:]}, "pairs"),
        ({"question": "Hi", "answer": "Hello"}, "pairs"),
        ({"type": "x", "query": "Hi", "original_question": "H", "response": "Hello"}, "pairs"),
        ({"id": 1, "system_prompt": "", "question": "Hi", "response": "Hello"}, "pairs"),
        ({"prompt": "Hi", "response": "Hello", "helpfulness": 4, "verbosity": 2}, "pairs"),
        ({"question": "Hi", "answers": {"text": ["Hello"], "answer_start": [0]}}, "pairs"),
        ({"context": "Hi", "response": "Hello"}, "pairs"),
        ({"input": "Hi", "output": "Hello"}, "pairs"),
        ({"Question": "Hi", "Answer": "Hello"}, "pairs"),
        ({"text": "Hi", "label": 1}, "labelled"),
        ({"sentence": "Hi", "label": 1, "idx": 0}, "labelled"),
        ({"question": "Hi", "sentence": "Hello", "label": 0, "idx": 0}, "labelled"),
        ({"question1": "Hi", "question2": "Hello", "label": 0}, "labelled"),
        ({"translation": {"de": "Hallo", "en": "Hello"}}, "translation"),
        ({"source": "Hallo", "target": "Hello"}, "translation"),
        ({"input_text": "Hallo", "target_text": "Hello"}, "translation"),
        ({"text": "Hi", "url": "http://", "timestamp": "2019"}, "text"),
        ({"content": "def f(): ...", "path": "a.py", "size": 3}, "text"),
        ({"text": "Hi", "messages": None, "label": None}, "text"),
    ],
)
def test_the_format_is_recognised(record: dict[str, Any], name: str) -> None:
    assert Recognizer().read(record)[0] == name
    assert Recognizer(name).read(record)[0] == name


def test_every_format_carries_the_name_that_the_table_gives_it() -> None:
    assert [load_format(name).NAME for name in FORMATS] == list(FORMATS)


def test_rows_of_several_formats_in_one_file_are_told_apart() -> None:
    recognizer = Recognizer()
    rows = [{"text": "a", "messages": None}, {"text": None, "messages": TALK}, {"text": "b"}]
    found = [recognizer.read(row)[1] for row in rows]
    assert found == [Text("a"), Conversation(TALK), Text("b")]


def test_a_recogniser_travels_to_other_processes() -> None:
    recognizer = pickle.loads(pickle.dumps(Recognizer("auto", {"text": "body"})))
    assert recognizer.read({"body": "a"}) == ("text", Text("a"))


@pytest.mark.parametrize(
    ("record", "shown"),
    [
        (
            {"mesages": TALK, "id": 1},
            r"no format fits the columns \(mesages, id\); the nearest is `chat` \(`messages`\); "
            r"set --data.columns.messages mesages\. Known: ",
        ),
        ({"prompt": "a"}, r"the nearest is `pairs` .* set --data.columns.completion COLUMN"),
        ({"zzz": "a"}, "none is near"),
        ({"ask": "a", "answr": "b"}, "the nearest is .* --data.columns.answer answr"),
    ],
)
def test_unknown_columns_are_shown_with_the_nearest_format(
    record: dict[str, Any], shown: str
) -> None:
    with pytest.raises(DataError, match=shown):
        Recognizer().read(record)


def test_many_columns_are_not_all_shown() -> None:
    with pytest.raises(DataError, match=r"c19, and 80 more\)"):
        Recognizer().read({f"c{n}": n for n in range(100)})


def test_two_readings_are_an_error_with_the_flags_that_decide() -> None:
    row = {"problem": "1 + 1", "solution": "Count.", "answer": "2"}
    with pytest.raises(DataError, match="fit 2 readings") as error:
        Recognizer().read(row)
    flags = "--data.columns.problem problem --data.columns.solution solution"
    assert flags in str(error.value)
    said = Recognizer("auto", {"problem": "problem", "solution": "solution"}).read(row)[1]
    assert said.messages[1]["content"] == "Count."

    row = {"input": "a", "output": "b", "sentence": "c", "label": 1}
    with pytest.raises(DataError, match="--data.format pairs or --data.format labelled"):
        Recognizer().read(row)
    assert Recognizer("labelled").read(row)[1] == Labelled("c", 1)


def test_a_column_is_read_under_another_name() -> None:
    row = {"frage": "Warum?", "antwort": "Darum.", "prompt": None}
    recognizer = Recognizer("pairs", {"prompt": "frage", "response": "antwort"})
    name, example = recognizer.read(row)
    said = [message["content"] for message in example.messages]
    assert (name, said) == ("pairs", ["Warum?", "Darum."])


def test_a_key_inside_a_column_chooses_the_direction_of_a_translation() -> None:
    columns = {"source": "translation.en", "target": "translation.de"}
    row = {"translation": {"de": "Hallo", "en": "Hello"}}
    assert Recognizer("auto", columns).read(row)[1] == PromptAnswer("Hello\n", "Hallo")


def test_a_mapping_that_leads_nowhere_is_an_error_with_what_exists() -> None:
    with pytest.raises(DataError, match=r"--data.columns.promt q: .*mean prompt\?; known: .*text"):
        Recognizer("auto", {"promt": "q"})
    with pytest.raises(DataError, match="label is no name of the format pairs"):
        Recognizer("pairs", {"label": "q"})
    with pytest.raises(
        DataError, match=r"prompt qestion: the row has no such column; did you mean"
    ):
        Recognizer("auto", {"prompt": "qestion"}).read({"question": "a", "answer": "b"})


def test_an_unknown_format_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(
        DataError, match=r"--data.format pair: no such format; did you mean pairs\?"
    ):
        Recognizer("pair")
    with pytest.raises(DataError, match="known: auto, chat, sharegpt"):
        Recognizer("zzz")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": None}, "`text` has to be text, not null"),
        ({"prompt": "a", "completion": None}, "`completion` has to be text, not null"),
        ({"messages": "oops"}, "`messages` is text but not JSON"),
        ({"question": "a", "choices": ["b"], "answer": 2}, "`answer` has to be text, not a number"),
        ({}, "the row is empty"),
        ([], "a row has to be an object"),
    ],
)
def test_a_row_with_bad_values_is_a_bad_row_and_not_an_unknown_format(
    record: Any, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        Recognizer().read(record)


def test_one_bad_row_does_not_decide_for_those_after_it() -> None:
    recognizer = Recognizer()
    with pytest.raises(ValueError, match="has to be a list"):
        recognizer.read({"conversations": 3})
    assert recognizer.read({"conversations": SHARED})[0] == "sharegpt"

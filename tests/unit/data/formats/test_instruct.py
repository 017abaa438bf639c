from typing import Any

import pytest

from bigft.data.example import Conversation, PromptAnswer
from bigft.data.formats import instruct


def test_prompt_and_completion_stay_plain() -> None:
    assert instruct.read({"prompt": "1 + 1 =", "completion": " 2"}) == PromptAnswer("1 + 1 =", " 2")


@pytest.mark.parametrize(
    ("record", "request_text"),
    [
        ({"prompt": "Q", "response": "A"}, "Q"),
        ({"question": "Q", "answer": "A"}, "Q"),
        ({"instruction": "Q", "output": "A"}, "Q"),
        ({"instruction": "Q", "input": "", "output": "A"}, "Q"),
        ({"instruction": "Q", "input": None, "output": "A"}, "Q"),
        ({"instruction": "Q", "input": "x", "output": "A"}, "Q\n\nx"),
        ({"instruction": "Q", "output": "A", "response": None}, "Q"),
    ],
)
def test_other_pairs_are_two_turns(record: dict[str, Any], request_text: str) -> None:
    assert instruct.read(record) == Conversation(
        [{"role": "user", "content": request_text}, {"role": "assistant", "content": "A"}]
    )


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "Q", "completion": None}, "`completion` has to be text, not NoneType"),
        ({"prompt": " ", "completion": "A"}, "`prompt` is empty"),
        ({"instruction": "Q", "input": 3, "output": "A"}, "`input` has to be text, not int"),
        ({"prompt": "Q", "completion": "A", "response": "B"}, "2 readings are possible"),
    ],
)
def test_bad_records_are_refused_with_the_reason(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        instruct.read(record)

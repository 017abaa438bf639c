from typing import Any

import pytest

from bigft.data.example import Conversation
from bigft.data.formats import instruct

SHAPE = instruct.SHAPES[0]


def turns(*contents: str) -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(contents)
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]


@pytest.mark.parametrize(
    ("record", "request_text"),
    [
        ({}, "Give three tips."),
        ({"input": ""}, "Give three tips."),
        ({"input": None}, "Give three tips."),
        ({"input": "For cooks."}, "Give three tips.\n\nFor cooks."),
        ({"context": "A kitchen."}, "Give three tips.\n\nA kitchen."),
    ],
)
def test_instruction_and_input_are_one_request(record: dict[str, Any], request_text: str) -> None:
    row = {"instruction": "Give three tips.", "output": "1. Salt.", "id": 1, **record}
    assert instruct.read(row, SHAPE) == Conversation(turns(request_text, "1. Salt."))


def test_history_and_system_stand_before_the_request() -> None:
    row = {
        "instruction": "And 3 + 3?",
        "input": "",
        "output": "6",
        "system": "You calculate.",
        "history": [["1 + 1?", "2"], ["2 + 2?", "4"]],
    }
    system = {"role": "system", "content": "You calculate."}
    said = turns("1 + 1?", "2", "2 + 2?", "4", "And 3 + 3?", "6")
    assert instruct.read(row, SHAPE).messages == [system, *said]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"input": 3}, "`input` has to be text, not a number"),
        ({"output": None}, "`output` has to be text, not null"),
        ({"instruction": " "}, "`instruction` is empty"),
        ({"history": [["a"]]}, r"`history\[0\]` has to be a list of a request and its answer"),
        ({"history": [["a", None]]}, r"`history\[0\]\[1\]` has to be text, not null"),
        ({"system": ["x"]}, "`system` has to be text, not a list"),
    ],
)
def test_bad_rows_are_refused_with_the_reason(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        instruct.read({"instruction": "Q", "output": "A", **change}, SHAPE)

import json
from typing import Any

import pytest

from bigft.data.example import Conversation
from bigft.data.formats import sharegpt

SHAPE = next(shape for shape in sharegpt.SHAPES if shape.needed == ("conversations",))


def read(record: dict[str, Any]) -> Conversation:
    return sharegpt.read(record, SHAPE)


def test_human_and_gpt_are_user_and_assistant() -> None:
    record = {
        "id": "QWJhYvA_0",
        "conversations": [
            {"from": "human", "value": "Summarise this.", "weight": None},
            {"from": "gpt", "value": "It is short.", "weight": 1},
            {"from": "human", "value": "Shorter."},
            {"from": "chatgpt", "value": "Short."},
        ],
        "system": "You are terse.",
    }
    assert read(record).messages == [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "Summarise this."},
        {"role": "assistant", "content": "It is short.", "weight": 1},
        {"role": "user", "content": "Shorter."},
        {"role": "assistant", "content": "Short."},
    ]


@pytest.mark.parametrize("name", ["gpt", "assistant", "chatgpt", "bing", "bard", "model", "GPT"])
def test_every_name_of_an_assistant_is_known(name: str) -> None:
    record = {"conversations": [{"from": "user", "value": "a"}, {"from": name, "value": "b"}]}
    assert read(record).messages[1]["role"] == "assistant"


def test_a_function_call_is_an_assistants_turn_and_its_observation_a_tools() -> None:
    record = {
        "conversations": [
            {"from": "human", "value": "Is 7 prime?"},
            {"from": "function_call", "value": '{"name": "prime", "arguments": {"n": 7}}'},
            {"from": "observation", "value": "true"},
            {"from": "gpt", "value": "Yes."},
        ],
        "tools": json.dumps([{"name": "prime", "parameters": {}}]),
    }
    example = read(record)
    assert [message["role"] for message in example.messages] == [
        *("user", "assistant", "tool", "assistant")
    ]
    call = {"name": "prime", "arguments": {"n": 7}}
    assert example.messages[1]["tool_calls"] == [{"type": "function", "function": call}]
    assert example.tools == [{"type": "function", "function": {"name": "prime", "parameters": {}}}]


def test_a_call_in_the_words_of_the_assistant_may_have_a_result() -> None:
    called = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    turns = [("human", "x"), ("gpt", called), ("tool", "<tool_response>1</tool_response>")]
    record = {"conversations": [{"from": role, "value": words} for role, words in turns]}
    assert read(record).messages[2]["role"] == "tool"


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"`conversations\[0\].from` is 'humann'.*mean human\?"):
        read({"conversations": [{"from": "humann", "value": "a"}]})
    with pytest.raises(ValueError, match=r"`conversations\[0\].value\[0\]` has to be an object"):
        read({"conversations": [{"from": "function_call", "value": "[3]"}]})

import json
from typing import Any

import pytest

from bigft.data.formats import chat

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_messages_and_tools_are_read() -> None:
    example = chat.read({"messages": MESSAGES, "tools": [{"name": "f"}], "id": 3})
    assert example.messages == MESSAGES
    assert example.tools == [{"name": "f"}]


def test_messages_may_be_json_text() -> None:
    assert chat.read({"messages": json.dumps(MESSAGES)}).messages == MESSAGES


def test_a_tool_call_may_have_no_content_and_absent_keys_are_dropped() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}], "name": None}
    expected = {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}
    assert chat.read({"messages": [call]}).messages == [expected]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "empty"),
        (None, "has to be a list, not NoneType"),
        ("Hi", "not JSON"),
        (["Hi"], "message 1 has to be an object"),
        ([{"role": "human", "content": "Hi"}], "message 1: the role 'human' is none of system"),
        (
            [MESSAGES[0], {"role": "assistant"}],
            r"message 2 \(assistant\): `content` has to be text",
        ),
        ([{"role": "user", "content": "\ud800"}], "not valid Unicode at character 0"),
    ],
)
def test_bad_messages_are_refused_with_the_reason(messages: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        chat.read({"messages": messages})

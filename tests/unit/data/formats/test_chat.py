import json
from typing import Any

import pytest

from bigft.data.example import Conversation
from bigft.data.formats import chat

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {
    "id": "call_9",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Bern", "unit": null}'},
}


def read(record: dict[str, Any]) -> Conversation:
    column = next(name for name in chat.COLUMNS if name in record)
    shape = next(shape for shape in chat.SHAPES if shape.needed == (column,))
    return chat.read(record, shape)


def test_messages_are_read_whatever_else_the_row_holds() -> None:
    example = read({"messages": MESSAGES, "id": 3, "source": "forum", "meta": {"a": 1}})
    assert example == Conversation(MESSAGES, None)


def test_a_conversation_may_be_json_text_in_any_of_the_columns() -> None:
    for column in ("messages", "conversation", "dialog"):
        assert read({column: json.dumps(MESSAGES)}).messages == MESSAGES


def test_a_tool_call_has_its_arguments_as_an_object_and_needs_no_content() -> None:
    record = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Weather in Bern?", "name": None, "tool_calls": None},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_9", "content": '{"celsius": 4}'},
            {"role": "assistant", "content": "4 degrees."},
        ],
        "tools": [WEATHER],
    }
    call = {"name": "get_weather", "arguments": {"city": "Bern", "unit": None}}
    example = read(record)
    assert example.tools == [WEATHER]
    assert example.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather in Bern?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_9", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "call_9", "content": '{"celsius": 4}'},
        {"role": "assistant", "content": "4 degrees."},
    ]


def test_the_older_function_call_is_a_tool_call() -> None:
    record = {
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "function_call": CALL["function"]},
            {"role": "function", "name": "get_weather", "content": "4"},
            {"role": "assistant", "content": "4 degrees."},
        ],
        "functions": json.dumps([WEATHER["function"]]),
    }
    example = read(record)
    assert example.tools == [WEATHER]
    assert example.messages[1]["tool_calls"][0]["function"]["name"] == "get_weather"
    assert example.messages[2] == {"role": "tool", "name": "get_weather", "content": "4"}


def test_parts_of_text_are_joined_and_other_parts_refused() -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "this?"}]
    assert read({"messages": [{"role": "user", "content": parts}]}).messages[0]["content"] == (
        "What is this?"
    )
    image = {"type": "image_url", "image_url": {"url": "a.png"}, "text": None}
    with pytest.raises(ValueError, match=r"`messages\[0\].content\[2\].type` is 'image_url'"):
        read({"messages": [{"role": "user", "content": [*parts, image]}]})


def test_nulls_that_fill_a_columnar_file_are_dropped_at_any_depth() -> None:
    properties = {"city": {"type": "string", "enum": None}, "language": None}
    tool = {"name": "f", "parameters": {"properties": properties}}
    example = read({"messages": MESSAGES, "tools": [tool]})
    assert example.tools is not None
    kept = example.tools[0]["function"]["parameters"]["properties"]
    assert kept == {"city": {"type": "string"}}


def test_an_empty_system_prompt_stays_for_it_is_not_the_templates_own() -> None:
    turns = [{"role": "system", "content": ""}, *MESSAGES]
    assert read({"messages": turns}).messages == turns


def test_a_system_column_is_the_first_turn() -> None:
    system = {"role": "system", "content": "Be kind."}
    assert read({"messages": MESSAGES, "system": "Be kind."}).messages == [system, *MESSAGES]
    with pytest.raises(ValueError, match="`system` is a second system prompt"):
        read({"messages": [system, *MESSAGES], "system": "Be kind."})


def turn(role: str, content: str = "x", **others: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **others}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "`messages` is empty"),
        (None, "`messages` has to be a list, not null"),
        ("Hi", "`messages` is text but not JSON: 'Hi'"),
        ([3], r"`messages\[0\]` has to be an object with `role` and `content`, not a number"),
        ([turn("asistant")], r"`messages\[0\].role` is 'asistant', .*did you mean assistant\?"),
        ([{"content": "x"}], r"`messages\[0\].role` has to be a role, not null"),
        (
            [turn("user"), {"role": "assistant"}],
            r"`messages\[1\].content` has to be text, not null",
        ),
        ([turn("user", " ")], r"`messages\[0\].content` is empty"),
        ([turn("user", "\ud800")], r"`messages\[0\].content` is not valid Unicode at character 0"),
        ([turn("user"), turn("user")], r"`messages\[1\].role`: two user turns in a row"),
        (
            [turn("user"), turn("assistant"), turn("assistant")],
            r"`messages\[2\].role`: two assistant turns in a row",
        ),
        ([turn("user"), turn("system")], r"messages\[1\].role`: a system turn .* the start only"),
        ([turn("user"), turn("tool")], r"messages\[1\].role`: the result of a tool, but"),
        ([turn("user"), turn("assistant"), turn("tool")], "the turn before calls none"),
        (
            [turn("user"), turn("assistant", tool_calls=[{"function": {"name": "f", **{}}}, 3])],
            r"`messages\[1\].tool_calls\[1\]` has to be an object, not a number",
        ),
        (
            [turn("assistant", tool_calls=[{"function": {"name": "f", "arguments": "{"}}])],
            r"tool_calls\[0\].function.arguments` is text but not JSON: '\{'",
        ),
        ([turn("assistant", tool_calls=[{"function": {}}])], r"function` has no `name`"),
        ([turn("user", reasoning="\udc00")], r"`messages\[0\]` is not valid Unicode"),
    ],
)
def test_bad_messages_are_refused_with_the_place_and_the_reason(messages: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read({"messages": messages})


def test_too_deep_nesting_is_refused_and_not_a_crash() -> None:
    deep: Any = "x"
    for _ in range(200):
        deep = [deep]
    with pytest.raises(ValueError, match="nested in more than 32 levels"):
        read({"messages": [turn("user", extra=deep)]})


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        ("f", "`tools` is text but not JSON"),
        ({"name": "f"}, "`tools` has to be a list, not an object"),
        ([3], r"`tools\[0\]` has to be an object, not a number"),
        ([{"description": "x"}], r"`tools\[0\]` has no `name`"),
    ],
)
def test_bad_tools_are_refused(tools: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read({"messages": MESSAGES, "tools": tools})

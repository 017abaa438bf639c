import copy

import pytest

from bigft.data.clean.parts import find_texts, map_texts
from bigft.data.example import Conversation, Example, Labelled, PromptAnswer, Text

CALLS = [{"type": "function", "function": {"name": "f", "arguments": '{"x": "a"}'}}]
CHAT = Conversation(
    [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "b", "name": "a"},
        {"role": "assistant", "content": "", "reasoning_content": "c", "tool_calls": CALLS},
        {"role": "tool", "content": "d", "tool_call_id": "a"},
        {"role": "assistant", "content": "e"},
    ],
    tools=[{"name": "a"}],
)
EXAMPLES: list[Example] = [
    Text("a"),
    PromptAnswer("a", "b"),
    CHAT,
    Labelled("a", "b"),
    Labelled("a", 1, "c"),
]


def test_every_text_is_mapped_and_nothing_else() -> None:
    assert map_texts(Text("a"), str.upper) == Text("A")
    assert map_texts(PromptAnswer("a", "b"), str.upper) == PromptAnswer("A", "B")
    assert map_texts(Labelled("a", "b"), str.upper) == Labelled("A", "b")
    assert map_texts(Labelled("a", 0, "c"), str.upper) == Labelled("A", 0, "C")
    mapped = map_texts(CHAT, str.upper)
    assert isinstance(mapped, Conversation)
    assert mapped.messages == [
        {"role": "system", "content": "A"},
        {"role": "user", "content": "B", "name": "a"},
        {"role": "assistant", "content": "", "reasoning_content": "C", "tool_calls": CALLS},
        {"role": "tool", "content": "D", "tool_call_id": "a"},
        {"role": "assistant", "content": "E"},
    ]
    assert mapped.tools == [{"name": "a"}]


def test_only_the_texts_of_the_named_roles_are_mapped() -> None:
    assert map_texts(PromptAnswer("a", "b"), str.upper, ["user"]) == PromptAnswer("A", "b")
    assert map_texts(PromptAnswer("a", "b"), str.upper, ["assistant"]) == PromptAnswer("a", "B")
    assert map_texts(Text("a"), str.upper, ["user"]) == Text("a")
    mapped = map_texts(CHAT, str.upper, ["user", "tool"])
    assert list(find_texts(mapped)) == ["a", "B", "", "c", "D", "e"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_an_example_without_a_change_is_the_same_object_and_no_example_is_edited(
    example: Example,
) -> None:
    assert map_texts(example, lambda text: "".join(list(text))) is example
    before = copy.deepcopy(example)
    map_texts(example, lambda text: text + "!")
    assert example == before


def test_texts_are_found_in_the_order_in_which_they_are_mapped() -> None:
    for example in EXAMPLES:
        seen: list[str] = []

        def note(text: str, seen: list[str] = seen) -> str:
            seen.append(text)
            return text

        map_texts(example, note)
        assert list(find_texts(example)) == seen
    assert list(find_texts(CHAT, ["assistant"])) == ["", "c", "e"]
    assert list(find_texts(PromptAnswer("a", "b"), ["assistant"])) == ["b"]


def test_content_in_parts_is_mapped_where_it_is_text() -> None:
    picture = {"type": "image_url", "image_url": {"url": "a"}}
    content = [{"type": "text", "text": "a"}, picture]
    example = Conversation([{"role": "user", "content": content}])
    assert list(find_texts(example)) == ["a"]
    mapped = map_texts(example, str.upper)
    assert isinstance(mapped, Conversation)
    assert mapped.messages[0]["content"] == [{"type": "text", "text": "A"}, picture]
    assert map_texts(example, str.lower) is example


def test_other_answers_are_cleaned_as_the_one_that_is_learned():
    pair = PromptAnswer("Q", "A", ("B", "C"))
    talk = Conversation([{"role": "user", "content": "Q"}], others=("B",))
    assert map_texts(pair, str.lower) == PromptAnswer("q", "a", ("b", "c"))
    assert map_texts(talk, str.lower).others == ("b",)
    assert map_texts(pair, str.lower, {"user"}) == PromptAnswer("q", "A", ("B", "C"))
    assert map_texts(talk, str.upper) is talk

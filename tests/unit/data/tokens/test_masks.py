import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from bigft.data.example import Conversation
from bigft.data.tokens import masks
from bigft.data.tokens.masks import Rendered, Renderer
from bigft.data.tokens.templates import CHATML_TEMPLATE
from bigft.data.tokens.tokenize import tokenize_batch

WITHOUT_TAGS = re.sub(r"\{%- (end)?generation %\}", "", CHATML_TEMPLATE)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
TALK = [
    {"role": "system", "content": "Add."},
    {"role": "user", "content": "1 + 2?"},
    {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "It is 3."},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "Yes."},
]
CALLED = 'Let me see.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


def turn(role: str, content: str, **others: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **others}


def learn(
    messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, train_on: str = "assistant"
) -> list[str]:
    """Decode each run of learned tokens."""
    example = Conversation(messages)
    (found,) = tokenize_batch([example], tokenizer, train_on=train_on, max_length=4096)
    if isinstance(found, ValueError):
        raise found
    (row,) = found.rows
    runs: list[list[int]] = []
    for number, (token, marked) in enumerate(zip(row.input_ids, row.supervised, strict=True)):
        if marked and (number == 0 or not row.supervised[number - 1]):
            runs.append([])
        if marked:
            runs[-1].append(int(token))
    return [str(tokenizer.decode(run)) for run in runs]


@pytest.mark.parametrize("template", [CHATML_TEMPLATE, WITHOUT_TAGS])
def test_each_turn_with_its_call_and_its_end_is_learned(
    tokenizer: PreTrainedTokenizerFast, template: str
) -> None:
    tokenizer.chat_template = template
    expected = [f"{CALLED}<|im_end|>", "It is 3.<|im_end|>", "Yes.<|im_end|>"]
    assert learn(TALK, tokenizer) == expected
    assert learn(TALK, tokenizer, "last_assistant") == expected[2:]
    assert learn(TALK[:6], tokenizer, "last_assistant") == expected[1:2]
    assert learn(TALK[:2], tokenizer) == []


@pytest.mark.parametrize("template", [CHATML_TEMPLATE, WITHOUT_TAGS])
def test_a_turn_of_no_weight_is_read_only(
    tokenizer: PreTrainedTokenizerFast, template: str
) -> None:
    tokenizer.chat_template = template
    weighed = [{**m, "weight": int(n != 2)} if n in (2, 4) else m for n, m in enumerate(TALK)]
    assert learn(weighed, tokenizer) == ["It is 3.<|im_end|>", "Yes.<|im_end|>"]
    mute = [*TALK[:6], {**TALK[6], "weight": 0}]
    assert learn(mute, tokenizer)[1:] == ["It is 3.<|im_end|>"]
    assert learn(mute, tokenizer, "last_assistant") == []


def test_several_pairs_of_tags_in_a_turn_belong_to_it(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% for word in m.content.split() %}"
        "{% generation %}{{ word }}{% endgeneration %}{{ '|' }}{% endfor %}"
        "{% else %}{{ m.content }}{{ ':' }}{% endif %}{% endfor %}"
    )
    talk = [turn("user", "a"), turn("assistant", "b c"), turn("user", "d"), turn("assistant", "e")]
    assert learn(talk, tokenizer) == ["b", "c", "e", "<|endoftext|>"]
    assert learn(talk, tokenizer, "last_assistant") == ["e", "<|endoftext|>"]


@pytest.mark.parametrize("content", ["  spaced out  ", "\n", "a<|im_end|>\nb", "assistant\n"])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_unusual_words_do_not_move_the_marks(
    tokenizer: PreTrainedTokenizerFast, content: str, role: str
) -> None:
    talk = [
        turn("user", "Hi"),
        turn("assistant", "Yes"),
        turn("user", "So"),
        turn("assistant", "?"),
    ]
    talk[2 if role == "user" else 1]["content"] = content + "<|im_start|>assistant\nx"
    tagged = learn(talk, tokenizer)
    tokenizer.chat_template = WITHOUT_TAGS
    assert learn(talk, tokenizer) == tagged


@pytest.mark.parametrize(
    ("template", "turns", "expected"),
    [
        (WITHOUT_TAGS, 1, 1),
        (WITHOUT_TAGS, 6, 1),
        (CHATML_TEMPLATE, 6, 1),
    ],
)
def test_a_conversation_is_rendered_once(
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    template: str,
    turns: int,
    expected: int,
) -> None:
    tokenizer.chat_template = template
    renderer = Renderer(tokenizer)
    talk = [turn("user", "Hi"), turn("assistant", "Yes")] * turns
    renderer.render(Conversation(talk), "assistant")
    calls = []
    original = masks.Renderer._call
    monkeypatch.setattr(
        masks.Renderer, "_call", lambda *a, **k: (calls.append(1), original(*a, **k))[1]
    )
    assert len(renderer.render(Conversation(talk), "assistant").spans) == turns
    assert len(calls) == expected


def build_tokenizer(template: str, *, trims: bool) -> PreTrainedTokenizerFast:
    """Bytes with merges of spaces; `trims` as Llama 3 and GPT-2 place their tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space, merged = "\u0120", ["\u0120\u0120", "\u0120\u0120\u0120"]
    vocabulary = {entry: n for n, entry in enumerate([*alphabet, *merged, "<|end|>", "</s>"])}
    merges = [(space, space), (merged[0], space)]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=trims)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", additional_special_tokens=["<|end|>"]
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("trims", [True, False])
@pytest.mark.parametrize("template", [CHATML_TEMPLATE, WITHOUT_TAGS])
@pytest.mark.parametrize("answer", ["    x", "def f():\n    return 1", "a   ", "\N{GRINNING FACE}"])
def test_indentation_and_characters_of_several_tokens_are_learned(
    template: str, trims: bool, answer: str
) -> None:
    tokenizer = build_tokenizer(template.replace("<|im_end|>", "<|end|>"), trims=trims)
    talk = [turn("user", "  Hi  "), turn("assistant", answer), turn("user", "  So")]
    assert learn(talk, tokenizer) == [f"{answer}<|end|>"]


def test_a_word_joined_with_the_templates_space_is_learned() -> None:
    backend = Tokenizer(
        models.WordLevel(
            {"<unk>": 0, "\u2581Hi": 1, "\u2581ASK:": 2, "\u2581SAY:": 3, "\u2581Yes": 4}
        )
    )
    backend.normalizer = normalizers.Prepend("\u2581")
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}ASK: {{ m.content }} SAY: "
        "{% else %}{% generation %}{{ m.content }}{% endgeneration %} {% endif %}{% endfor %}"
    )
    assert learn([turn("user", "Hi"), turn("assistant", "Yes"), turn("user", "Hi")], tokenizer) == [
        "Yes"
    ]


def test_templates_for_tools_are_used_for_conversations_with_tools(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.chat_template = {"default": "plain", "tool_use": "{{ tools[0].function.name }}"}
    renderer = Renderer(tokenizer)
    messages = [turn("user", "a")]
    tool = {"type": "function", "function": {"name": "add"}}
    assert renderer.render(Conversation(messages), "all").text == "plain"
    assert renderer.render(Conversation(messages, [tool]), "all").text == "add"


# Ends, and the shortcut through one rendering.

ONLY_WORDS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    "<|end|>{% endfor %}"
)


@pytest.mark.parametrize("trims", [True, False])
@pytest.mark.parametrize("answer", ["\N{GRINNING FACE}", "a   ", "   ", "a\n"])
def test_a_turn_whose_end_the_template_does_not_mark_is_learned_to_its_last_token(
    trims: bool, answer: str
) -> None:
    tokenizer = build_tokenizer(ONLY_WORDS, trims=trims)
    talk = [turn("user", "Hi"), turn("assistant", answer), turn("user", "   ")]
    assert learn(talk, tokenizer) == [answer]


# Every line ends alike, so that a turn's end looks like many places inside of turns.
LINES = (
    "{% for m in messages %}{% if not m.hidden %}{{ m.role }}: {% endif %}{{ m.content }}\n"
    "{% for call in m.tool_calls or [] %}CALL {{ call }}\n{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}"
    "{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_pieces = st.sampled_from(
    ["a", "b\n", " ", "assistant: ", "user: ", "<|im_start|>assistant\n", "<|im_end|>\n", "\n"]
)
_contents = st.lists(_pieces, min_size=1, max_size=4).map("".join)
_extras = st.sampled_from([{}, {}, {"hidden": True}, {"tool_calls": ["f"]}])


@settings(max_examples=300)
@given(
    st.sampled_from([WITHOUT_TAGS, LINES, THINKING]),
    st.lists(st.tuples(_contents, _extras), min_size=1, max_size=6),
)
def test_one_rendering_marks_what_all_prefixes_mark(
    session_tokenizer: PreTrainedTokenizerFast,
    template: str,
    turns: list[tuple[str, dict[str, Any]]],
) -> None:
    roles = ["user", "assistant"] * 3
    if template == WITHOUT_TAGS:
        turns = [(content, {}) for content, _ in turns]
    talk = [turn(r, c, **more) for r, (c, more) in zip(roles, turns, strict=False)]
    example = Conversation(talk)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_tokenizer, "chat_template", template)
        found = render_or_refuse(example, session_tokenizer)
        patch.setattr(Renderer, "_find_frame", lambda *_: None)
        expected = render_or_refuse(example, session_tokenizer)
    assert found == expected or expected is None


def render_or_refuse(example: Conversation, tokenizer: PreTrainedTokenizerFast) -> Rendered | None:
    try:
        return Renderer(tokenizer).render(example, "assistant")
    except ValueError:
        return None

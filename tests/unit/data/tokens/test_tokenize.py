import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bigft.data.example import Conversation, Labelled, PromptAnswer, Text
from bigft.data.tokens.templates import CHATML_TEMPLATE
from bigft.data.tokens.tokenize import (
    OverlongError,
    Row,
    Tokenized,
    find_end_token_ids,
    tokenize_batch,
)

WITHOUT_TAGS = re.sub(r"\{%- (end)?generation %\}", "", CHATML_TEMPLATE)
# The last turn carries an empty thought, earlier ones do not (as Qwen3 renders them).
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

words = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20).filter(
    lambda text: text.strip() == text and "<|" not in text
)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def tokenize(example: object, tokenizer: PreTrainedTokenizerFast, **options: object) -> Tokenized:
    settings_ = {"train_on": "assistant", "max_length": 1024, **options}
    (result,) = tokenize_batch([example], tokenizer, **settings_)  # type: ignore[arg-type,list-item]
    if isinstance(result, ValueError):
        raise result
    return result


def run(example: object, tokenizer: PreTrainedTokenizerFast, **options: object) -> list[Row]:
    return tokenize(example, tokenizer, **options).rows


def learned(row: Row, tokenizer: PreTrainedTokenizerFast) -> str:
    return str(tokenizer.decode(row.input_ids[row.supervised]))


def build_base_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and EOS, no chat template, no ChatML tokens: like a base model's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {entry: number for number, entry in enumerate([*alphabet, "</s>"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=3), st.booleans())
def test_exactly_what_the_assistant_says_is_learned(
    session_tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]], has_system: bool
) -> None:
    messages = [turn("system", "Be kind.")] if has_system else []
    for question, answer in pairs:
        messages += [turn("user", question), turn("assistant", answer)]
    (row,) = run(Conversation(messages), session_tokenizer)
    assert learned(row, session_tokenizer) == "".join(f"{a}<|im_end|>" for _, a in pairs)
    text = session_tokenizer.apply_chat_template(messages, tokenize=False)
    assert session_tokenizer.decode(row.input_ids) == text


@settings(max_examples=50, deadline=None)
@given(st.lists(words, min_size=2, max_size=6))
def test_prefixes_and_generation_tags_mark_the_same_tokens(
    session_tokenizer: PreTrainedTokenizerFast, contents: list[str]
) -> None:
    roles = ["user", "assistant"] * 3
    example = Conversation([turn(*pair) for pair in zip(roles, contents, strict=False)])
    (tagged,) = run(example, session_tokenizer)
    try:
        session_tokenizer.chat_template = WITHOUT_TAGS
        (prefixed,) = run(example, session_tokenizer)
    finally:
        session_tokenizer.chat_template = CHATML_TEMPLATE
    np.testing.assert_array_equal(tagged.input_ids, prefixed.input_ids)
    np.testing.assert_array_equal(tagged.supervised, prefixed.supervised)


def test_a_template_that_rewrites_earlier_turns_is_marked_as_it_stands_in_the_end(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.chat_template = THINKING
    one = [turn("user", "a"), turn("assistant", "b")]
    (row,) = run(Conversation(one), tokenizer)
    assert learned(row, tokenizer) == "<think></think>b<|im_end|>"
    (row,) = run(Conversation(one * 2), tokenizer)
    assert learned(row, tokenizer) == "b<|im_end|><think></think>b<|im_end|>"


def test_a_template_that_rewrites_what_stands_before_an_answer_is_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.chat_template = "{{ messages | length }}" + THINKING
    two = [turn("user", "a"), turn("assistant", "b")] * 2
    with pytest.raises(ValueError, match="renders message 2 differently"):
        run(Conversation(two), tokenizer)
    tokenizer.chat_template = THINKING
    with pytest.raises(ValueError, match="the assistant speaks first"):
        run(Conversation(two[1:2]), tokenizer)


def test_a_conversation_that_the_template_refuses_is_a_bad_record(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.chat_template = "{{ raise_exception('no system turn, please') }}"
    with pytest.raises(ValueError, match="no system turn, please"):
        run(Conversation([turn("user", "a")]), tokenizer)


def test_eos_is_learned_where_a_template_has_no_end_of_turn() -> None:
    tokenizer = build_base_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    turns = [turn("user", "a"), turn("assistant", "b")]
    (row,) = run(Conversation(turns), tokenizer)
    assert learned(row, tokenizer) == "b\n</s>"
    (row,) = run(Conversation([*turns, turn("user", "c")]), tokenizer)
    assert learned(row, tokenizer) == "b\n"
    assert tokenizer.eos_token_id not in row.input_ids


def test_without_a_template_chatml_is_written_as_plain_text() -> None:
    tokenizer = build_base_tokenizer()
    (row,) = run(Conversation([turn("user", "a"), turn("assistant", "b")]), tokenizer)
    assert learned(row, tokenizer) == "b<|im_end|></s>"
    assert tokenizer.decode(row.input_ids) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|></s>"
    )


def test_the_answer_and_eos_of_a_prompt_are_learned(tokenizer: PreTrainedTokenizerFast) -> None:
    (row,) = run(PromptAnswer("def f():", "\n    return"), tokenizer)
    assert tokenizer.decode(row.input_ids) == "def f():\n    return<|endoftext|>"
    assert learned(row, tokenizer) == "\n    return<|endoftext|>"
    prompt = tokenizer("def f():")["input_ids"]
    assert row.input_ids[: len(prompt)].tolist() == prompt


@pytest.mark.parametrize(
    "example",
    [PromptAnswer("Hi", "you"), Conversation([turn("user", "Hi"), turn("assistant", "you")])],
)
def test_train_on_all_learns_everything_but_the_first_token(
    tokenizer: PreTrainedTokenizerFast, example: object
) -> None:
    (row,) = run(example, tokenizer, train_on="all")
    assert row.supervised.tolist() == [False] + [True] * (len(row) - 1)


def test_a_long_conversation_is_cut_off_on_the_right(tokenizer: PreTrainedTokenizerFast) -> None:
    example = Conversation([turn("user", "Hi"), turn("assistant", "word " * 50)])
    (whole,) = run(example, tokenizer)
    assert not whole.is_truncated
    (short,) = run(example, tokenizer, max_length=20)
    assert short.is_truncated
    np.testing.assert_array_equal(short.input_ids, whole.input_ids[:20])
    np.testing.assert_array_equal(short.supervised, whole.supervised[:20])


# A text that brings its own EOS gets no second one.
unended = st.text(min_size=1, max_size=60).filter(lambda text: not text.endswith("<|endoftext|>"))


@given(unended, st.integers(2, 20))
def test_each_token_of_a_long_text_is_learned_once(
    session_tokenizer: PreTrainedTokenizerFast, text: str, max_length: int
) -> None:
    rows = run(Text(text), session_tokenizer, max_length=max_length)
    expected = [*session_tokenizer(text)["input_ids"], session_tokenizer.eos_token_id]
    pieces = [row.input_ids[row.supervised].tolist() for row in rows]
    assert [expected[0], *(token for piece in pieces for token in piece)] == expected
    assert all(len(row) <= max_length and not row.supervised[0] for row in rows)
    assert all(len(row) > 1 for row in rows)


def test_generation_stops_at_eos_and_at_the_end_of_a_turn(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert find_end_token_ids(tokenizer) == ends
    base = build_base_tokenizer()
    assert find_end_token_ids(base) == [base.eos_token_id]


# Like Qwen3's: the last answer gets an (empty) block of thoughts, earlier ones lose theirs.
_FORGETFUL_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% set thoughts = '' %}{% set words = m['content'] or '' %}"
    "{% if '</think>' in words %}"
    "{% set thoughts = words.split('</think>')[0].split('<think>')[-1] | trim %}"
    "{% set words = words.split('</think>')[-1] | trim %}{% endif %}"
    "{% if m['role'] == 'assistant' and loop.last %}"
    "<think>\n{{ thoughts }}\n</think>\n\n{% endif %}"
    "{{ words }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_dropped_thoughts_are_neither_read_nor_learned(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = _FORGETFUL_TEMPLATE
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "<think>greet back</think>hello"},
        {"role": "user", "content": "hello?"},
        {"role": "assistant", "content": "<think>again</think>yes, hello"},
    ]
    (row,) = run(Conversation(turns), tokenizer)
    assert (
        learned(row, tokenizer) == "hello<|im_end|><think>\nagain\n</think>\n\nyes, hello<|im_end|>"
    )
    assert tokenizer.decode(row.input_ids).count("greet back") == 0


# Texts of a batch, and of kinds of tokenizers.


def test_a_batch_gives_each_example_what_it_gets_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = (
        CHATML_TEMPLATE + "{% if messages | length > 3 %}{{ oops() }}{% endif %}"
    )
    talk = [turn("user", "a"), turn("assistant", "b")]
    examples = [
        Text("one two three"),
        Conversation(talk),
        PromptAnswer("2 + 2 =", " 4"),
        Conversation(talk * 2),
        Labelled("a gripping film", 1),
        Text("four"),
    ]
    found = tokenize_batch(examples, tokenizer, train_on="assistant", max_length=64)
    assert isinstance(found[3], ValueError)
    for example, result in zip(examples, found, strict=True):
        if isinstance(result, ValueError):
            continue
        (row,), (alone,) = result.rows, run(example, tokenizer, max_length=64)
        np.testing.assert_array_equal(row.input_ids, alone.input_ids)
        np.testing.assert_array_equal(row.supervised, alone.supervised)
    assert tokenize_batch([], tokenizer, train_on="all", max_length=8) == []


@pytest.mark.parametrize(
    ("example", "whole", "said"),
    [
        (Labelled("a gripping film", 1), "a gripping film\n1", "1"),
        (
            Labelled("It rains.", "entailment", "It is wet."),
            "It rains.\nIt is wet.\nentailment",
            "entailment",
        ),
        (Labelled("a", ["raises", "returns"]), "a\nraises, returns", "raises, returns"),
        (Labelled("a", [5.25, -1]), "a\n5.25, -1", "5.25, -1"),
        (Labelled("a", []), "a\nnone", "none"),
    ],
)
def test_a_label_is_written_behind_its_text(
    tokenizer: PreTrainedTokenizerFast, example: Labelled, whole: str, said: str
) -> None:
    (row,) = run(example, tokenizer)
    assert tokenizer.decode(row.input_ids) == whole + "<|endoftext|>"
    assert learned(row, tokenizer) == said + "<|endoftext|>"


def test_slow_tokenizers_read_text_and_prompts_but_no_conversations() -> None:
    from transformers import ByT5Tokenizer

    from bigft.errors import DataError

    tokenizer = ByT5Tokenizer()
    (row,) = run(PromptAnswer("ab", "c"), tokenizer)
    assert row.input_ids.tolist() == [
        *tokenizer("ab")["input_ids"][:-1],
        *tokenizer("c")["input_ids"],
    ]
    assert row.supervised.tolist() == [False, False, True, True]
    with pytest.raises(DataError, match="use a model with a fast tokenizer"):
        run(Conversation([turn("user", "a"), turn("assistant", "b")]), tokenizer)


# Longer than allowed.

LONG = Conversation([turn("user", "Hi"), turn("assistant", "word " * 50)])


def test_a_short_example_says_how_long_it_is(tokenizer: PreTrainedTokenizerFast) -> None:
    result = tokenize(Text("one two"), tokenizer)
    assert result.num_tokens == len(result.rows[0])
    assert not result.is_overlong


@pytest.mark.parametrize("example", [LONG, Text("word " * 50), PromptAnswer("Hi", "word " * 50)])
def test_split_pieces_share_a_token_and_learn_each_once(
    tokenizer: PreTrainedTokenizerFast, example: object
) -> None:
    (whole,) = run(example, tokenizer)
    result = tokenize(example, tokenizer, max_length=20, overlong="split")
    assert (result.num_tokens, result.is_overlong) == (len(whole), True)
    ids, marks = list(result.rows[0].input_ids), list(result.rows[0].supervised)
    for row in result.rows[1:]:
        assert row.input_ids[0] == ids[-1]
        assert not row.supervised[0]
        ids += list(row.input_ids[1:])
        marks += list(row.supervised[1:])
    assert ids == whole.input_ids.tolist()
    assert marks == whole.supervised.tolist()
    assert all(1 < len(row) <= 20 and not row.is_truncated for row in result.rows)


def test_auto_splits_text_and_truncates_the_rest(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenize(Text("word " * 50), tokenizer, max_length=20).rows) > 1
    for example in (LONG, PromptAnswer("Hi", "word " * 50), Labelled("word " * 50, 1)):
        (row,) = tokenize(example, tokenizer, max_length=20).rows
        assert row.is_truncated


def test_text_is_truncated_where_that_is_wanted(tokenizer: PreTrainedTokenizerFast) -> None:
    (row,) = run(Text("word " * 50), tokenizer, max_length=20, overlong="truncate")
    assert (len(row), row.is_truncated) == (20, True)


def test_dropped_examples_are_told_from_empty_ones(tokenizer: PreTrainedTokenizerFast) -> None:
    result = tokenize(LONG, tokenizer, max_length=20, overlong="drop")
    assert (result.rows, result.is_overlong) == ([], True)
    assert result.num_tokens > 50
    assert tokenize(LONG, tokenizer, overlong="drop").rows


def test_overlong_examples_may_be_errors_that_travel(tokenizer: PreTrainedTokenizerFast) -> None:
    import pickle

    with pytest.raises(
        OverlongError, match=r"tokens, more than --max_length 20; raise it"
    ) as error:
        run(LONG, tokenizer, max_length=20, overlong="error")
    copied = pickle.loads(pickle.dumps(error.value))
    assert (str(copied), copied.num_tokens) == (str(error.value), error.value.num_tokens)


def test_a_text_that_ends_with_eos_gets_no_second_one(tokenizer: PreTrainedTokenizerFast) -> None:
    (row,) = run(Text("one<|endoftext|>"), tokenizer)
    assert tokenizer.decode(row.input_ids) == "one<|endoftext|>"

"""A prompt is what stands before the answer in training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from making import make_tokenizer

from bigft.data.example import Conversation, Labelled, PromptAnswer, Text
from bigft.data.layouts.next_token import NextToken
from bigft.data.layouts.source_target import SourceTarget
from bigft.data.section import DataSection
from bigft.data.tokens.prompts import build_prompts
from bigft.data.tokens.tokenize import tokenize_batch


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    return make_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")))


def _talk(*contents):
    roles = ("user", "assistant")
    return Conversation([{"role": roles[n % 2], "content": c} for n, c in enumerate(contents)])


EXAMPLES = {
    "continuation": (PromptAnswer("the red cat", " sleeps"), " sleeps"),
    "label": (Labelled("a dog", "animal"), "animal"),
    "pair": (Labelled("a dog", ["x", "y"], "a cat"), "x, y"),
    "one turn": (_talk("red or blue", "blue"), "blue"),
    "several turns": (_talk("red or blue", "blue", "and now", "one two"), "one two"),
    "turns behind the answer": (_talk("red or blue", "blue", "and now"), "blue"),
}


@pytest.mark.parametrize("case", EXAMPLES)
def test_the_prompt_is_the_row_up_to_the_answer(tokenizer, case):
    example, answer = EXAMPLES[case]
    (found,) = build_prompts([example], tokenizer)
    assert found.references == (answer,)
    (row,) = tokenize_batch(
        [example], tokenizer, train_on="last_assistant", max_length=99, overlong="error"
    )[0].rows
    learned = int(np.flatnonzero(row.supervised)[0])
    assert found.input_ids.tolist() == row.input_ids[:learned].tolist()


def test_all_right_answers_are_references(tokenizer):
    talk = replace(_talk("red or blue", "blue"), others=("the blue",))
    pair = PromptAnswer("the red cat", "sleeps", ("runs", "eats"))
    found = build_prompts([talk, pair], tokenizer)
    assert [one.references for one in found] == [("blue", "the blue"), ("sleeps", "runs", "eats")]
    layout = SourceTarget(tokenizer, DataSection(), "")
    found = layout.build_prompts([talk, Text("no answer"), pair])
    assert [one.references for one in (found[0], found[2])] == [
        ("blue", "the blue"),
        ("sleeps", "runs", "eats"),
    ]


def test_templates_with_tags_ask_in_the_same_way(tokenizer, monkeypatch):
    plain = build_prompts([EXAMPLES["several turns"][0]], tokenizer)[0]
    tagged = (
        "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}"
        "{{ m['content'] }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", tagged)
    found = build_prompts([EXAMPLES["several turns"][0]], tokenizer)[0]
    assert found.input_ids.tolist() == plain.input_ids.tolist()


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (Text("all alone"), "without an answer"),
        (_talk("only a question"), "without a turn of the assistant"),
        (Conversation([{"role": "assistant", "content": "first"}]), "without a turn"),
        (_talk("call it", None), "no text to compare with"),
        (_talk("say nothing", "  "), "no text to compare with"),
    ],
)
def test_what_cannot_be_asked_says_why(tokenizer, example, reason):
    good = EXAMPLES["one turn"][0]
    bad, found = build_prompts([example, good], tokenizer)
    assert isinstance(bad, ValueError)
    assert reason in str(bad)
    assert found.references == ("blue",)


def test_long_prompts_of_a_decoder_are_not_cut(tokenizer):
    layout = NextToken(tokenizer, DataSection(max_length=8))
    long, short = layout.build_prompts([PromptAnswer("red cat " * 9, "x"), PromptAnswer("a", "x")])
    assert "--max_length 8" in str(long)
    assert len(short.input_ids) == 1


def test_sources_of_an_encoder_are_those_of_training(tokenizer):
    layout = SourceTarget(tokenizer, DataSection(max_length=8), "turn: ")
    examples = [PromptAnswer("red cat " * 9, "x y"), Text("alone"), PromptAnswer("a", "b")]
    long, bad, short = layout.build_prompts(examples)
    assert isinstance(bad, ValueError)
    rows = layout.tokenize(examples)
    for found, result in ((long, rows[0]), (short, rows[2])):
        (row,) = result.rows
        assert found.input_ids.tolist() == row.input_ids[~row.supervised].tolist()
    assert (long.references, len(long.input_ids)) == (("x y",), 8)

"""Rows and batches of each kind of task."""

from typing import Any

import numpy as np
import pytest

from bigft.data.example import Conversation, Labelled, PromptAnswer, Text
from bigft.data.layouts.coders import OneClass
from bigft.data.layouts.masked import Masked, choose_words, find_beginnings
from bigft.data.layouts.source_target import SourceTarget
from bigft.data.layouts.targets import Targets
from bigft.data.loading.batches import build_collate
from bigft.data.loading.pad import pad
from bigft.data.section import DataSection
from bigft.data.tokens.tokenize import OverlongError, Row
from bigft.errors import DataError

LONG = " ".join(["word"] * 200)


def make_section(**changes: Any) -> DataSection:
    return DataSection(packing="none", max_length=24, **changes)


@pytest.fixture
def targets(tokenizer) -> Targets:
    return Targets(tokenizer, make_section(), OneClass(["a", "b"]))


def test_a_label_stands_behind_its_text(targets, tokenizer):
    (found,) = targets.tokenize([Labelled("Some text", "b")])
    (row,) = found.rows
    tokens = tokenizer("Some text")["input_ids"]
    assert row.input_ids.tolist() == [*tokens, len(tokens), 1]
    assert row.supervised.tolist() == [False] * (len(tokens) + 1) + [True]
    shown, rest = targets.show(row)
    assert (tokenizer.decode(shown.input_ids), rest) == ("Some text", "label: b")


def test_texts_are_cut_and_labels_are_not(targets):
    (found,) = targets.tokenize([Labelled(LONG, "b")])
    (row,) = found.rows
    assert (found.is_overlong, row.is_truncated) == (True, True)
    assert (len(row), row.input_ids[-1]) == (24 + 2, 1)
    assert found.num_tokens == 200
    batch = build_collate(targets)([[row]])
    assert batch.input_ids.shape == (1, 24)


@pytest.mark.parametrize("layout", ["targets", "source_target"])
def test_what_happens_to_long_rows_is_a_choice(tokenizer, layout):
    def build(section: DataSection) -> Any:
        if layout == "targets":
            return Targets(tokenizer, section, OneClass(["a", "b"]))
        return SourceTarget(tokenizer, section, "")

    example = Labelled(LONG, "a")
    (dropped,) = build(make_section(overlong="drop")).tokenize([example])
    assert (dropped.rows, dropped.is_overlong) == ([], True)
    (refused,) = build(make_section(overlong="error")).tokenize([example])
    assert isinstance(refused, OverlongError)


def test_rows_without_a_label_are_refused(targets):
    good, bad, unknown = targets.tokenize([Labelled("x", "a"), Text("x"), Labelled("x", "z")])
    assert not isinstance(good, ValueError)
    assert "without a label" in str(bad)
    assert "'z' is none of the 2 classes" in str(unknown)


def test_pairs_stand_apart_where_the_tokenizer_puts_nothing_between(targets, tokenizer):
    (found,) = targets.tokenize([Labelled("one", "a", "two")])
    (row,) = found.rows
    assert tokenizer.decode(row.input_ids[:-2]) == "one\ntwo"


def test_parts_of_the_data_keep_their_numbers(targets):
    first, second = (found.rows[0] for found in targets.tokenize([Labelled("x", "a")] * 2))
    batch = build_collate(targets, 2)(
        [[first], [Row(second.input_ids, second.supervised, source=1)], []]
    )
    assert batch.sources is not None
    assert batch.sources.tolist() == [[0], [1], [0]]
    assert batch.labels.tolist() == [[0], [0], [-100]]
    assert batch.supervised_tokens == 2


# A source and a target.


@pytest.fixture
def source_target(tokenizer) -> SourceTarget:
    return SourceTarget(tokenizer, make_section(), "do: ")


@pytest.mark.parametrize(
    ("example", "source", "target"),
    [
        (PromptAnswer("p", "a"), "do: p", "a"),
        (PromptAnswer("p\n", "a"), "do: p", "a"),
        (Labelled("t", "yes", "u"), "do: t\nu", "yes"),
        (Labelled("t", ["x", "y"]), "do: t", "x, y"),
        (
            Conversation(
                [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a"},
                ]
            ),
            "do: s\nq",
            "a",
        ),
    ],
)
def test_what_is_read_and_what_is_written(source_target, tokenizer, example, source, target):
    (found,) = source_target.tokenize([example])
    (row,) = found.rows
    eos = tokenizer.eos_token
    assert tokenizer.decode(row.input_ids[~row.supervised]) == source + eos
    assert tokenizer.decode(row.input_ids[row.supervised]) == target + eos


def test_both_sides_are_cut_but_end_as_they_did(source_target, tokenizer):
    (found,) = source_target.tokenize([PromptAnswer(LONG, LONG)])
    (row,) = found.rows
    for side in (row.input_ids[row.supervised], row.input_ids[~row.supervised]):
        assert len(side) == 24
        assert side[-1] == tokenizer.eos_token_id
    batch = build_collate(source_target)([[row], []])
    assert batch.input_ids.shape == batch.labels.shape == (2, 24)
    assert batch.supervised_tokens == 24


def test_one_text_is_no_pair(source_target):
    text, monologue = source_target.tokenize(
        [Text("x"), Conversation([{"role": "user", "content": "x"}])]
    )
    assert "a target from a source" in str(text)
    assert "has to end with a turn of the assistant" in str(monologue)


# Hidden tokens.


@pytest.fixture
def masking_tokenizer(tokenizer) -> Any:
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    return tokenizer


def build_masked(tokenizer: Any, share: float = 0.3, unit: str = "token", **more: Any) -> Masked:
    return Masked(tokenizer, make_section(**more), share=share, unit=unit)


@pytest.mark.parametrize("unit", ["token", "word"])
def test_exactly_the_share_is_hidden_anew_in_each_epoch(masking_tokenizer, unit):
    layout = build_masked(masking_tokenizer, unit=unit)
    text = "the function returns a list of names and removes the others from the registry"
    (found,) = layout.tokenize([Text(text)])
    (row,) = found.rows
    expected = int(layout.count(np.array([row.supervised.sum()]))[0])
    assert expected == round(0.3 * row.supervised.sum())
    seen = set()
    for epoch in range(40):
        batch = build_collate(layout)([[Row(row.input_ids, row.supervised, draw=(0, epoch, 7))]])
        labels = batch.labels[0]
        assert batch.supervised_tokens == expected
        learned = labels != -100
        assert labels[learned].tolist() == row.input_ids[learned.numpy()[: len(row)]].tolist()
        # What is not learned is not touched.
        kept = ~learned.numpy()[: len(row)]
        assert (batch.input_ids[0, : len(row)].numpy()[kept] == row.input_ids[kept]).all()
        seen.add(tuple(labels.tolist()))
    assert len(seen) > 30
    again = build_collate(layout)([[Row(row.input_ids, row.supervised, draw=(0, 3, 7))]])
    same = build_collate(layout)([[Row(row.input_ids, row.supervised, draw=(0, 3, 7))]])
    assert again.input_ids.equal(same.input_ids)
    assert again.labels.equal(same.labels)


def test_eight_of_ten_become_the_mask_token(masking_tokenizer):
    layout = build_masked(masking_tokenizer, share=0.5)
    rows = [found.rows[0] for found in layout.tokenize([Text(" ".join(["name"] * 20))])]
    hidden = masked = same = 0
    for number in range(400):
        row = Row(rows[0].input_ids, rows[0].supervised, draw=(number,))
        batch = build_collate(layout)([[row]])
        learned = batch.labels[0] != -100
        hidden += int(learned.sum())
        masked += int((batch.input_ids[0][learned] == masking_tokenizer.mask_token_id).sum())
        same += int((batch.input_ids[0][learned] == batch.labels[0][learned]).sum())
    assert masked / hidden == pytest.approx(0.8, abs=0.02)
    assert same / hidden == pytest.approx(0.1, abs=0.02)


def test_whole_words_are_hidden(masking_tokenizer):
    layout = build_masked(masking_tokenizer, share=0.4, unit="word")
    (found,) = layout.tokenize([Text("unregistered containers misbehave when reinitialised")])
    (row,) = found.rows
    begins = find_beginnings(masking_tokenizer)[row.input_ids]
    words = np.cumsum(begins | (np.arange(len(row)) == 0))
    whole = 0
    for number in range(50):
        batch = build_collate(layout)([[Row(row.input_ids, row.supervised, draw=(number,))]])
        hidden = (batch.labels[0] != -100).numpy()[: len(row)]
        parts = [
            (hidden & (words == word) & row.supervised).sum()
            / ((words == word) & row.supervised).sum()
            for word in set(words[hidden])
        ]
        # Only the last word, where none that fits is left, may be hidden in part.
        assert sum(part < 1 for part in parts) <= 1
        whole += sum(part == 1 for part in parts)
    assert whole >= 50


def test_words_are_taken_whole_while_they_fit():
    words = [np.array([0, 1, 2]), np.array([3]), np.array([4, 5]), np.array([6])]
    assert choose_words(words, 2).tolist() == [3, 6]
    assert choose_words(words, 4).tolist() == [0, 1, 2, 3]
    assert choose_words([np.array([0, 1, 2])], 2).tolist() == [0, 1]


def test_special_tokens_frame_every_piece(masking_tokenizer):
    from tokenizers import processors

    eos = masking_tokenizer.eos_token
    masking_tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{eos} $A {eos}", special_tokens=[(eos, masking_tokenizer.eos_token_id)]
    )
    layout = build_masked(masking_tokenizer)
    (found,) = layout.tokenize([Text(LONG)])
    assert len(found.rows) > 5
    for row in found.rows:
        assert len(row) <= 24
        assert {row.input_ids[0], row.input_ids[-1]} == {masking_tokenizer.eos_token_id}
        assert row.supervised.tolist() == [False] + [True] * (len(row) - 2) + [False]
    ids = np.concatenate([row.input_ids[1:-1] for row in found.rows])
    assert masking_tokenizer.decode(ids) == LONG


def test_tokenizers_that_cannot_are_refused(tokenizer):
    with pytest.raises(DataError, match="has no mask token"):
        build_masked(tokenizer)


def test_padding():
    values, mask = pad([np.arange(3), np.arange(0), np.arange(9)], fill=7, longest=12)
    assert values.shape == (3, 12)
    assert values[0].tolist() == [0, 1, 2, *[7] * 9]
    assert mask.sum(1).tolist() == [3, 12, 9]
    assert pad([np.arange(9)], fill=0, longest=64)[0].shape == (1, 16)

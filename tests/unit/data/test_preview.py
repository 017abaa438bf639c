"""Counting, choosing and decoding for the preview."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import make_tokenizer

from bigft.data.open import open_all
from bigft.data.order.split import split_by_digest
from bigft.data.preview import Preview, build_preview, decode_row
from bigft.data.section import DataSection
from bigft.data.tokens.tokenize import Row


@pytest.fixture(scope="module")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def preview(folder: Path, tokenizer, spec: str, num_examples: int = 3, **settings) -> Preview:
    loading = {"cache_dir": str(folder / "cache")}
    section = DataSection.model_validate({"train": spec, "loading": loading, **settings})
    opened = open_all(section, tokenizer, 1)
    return build_preview(opened, section, tokenizer, seed=1, num_examples=num_examples)


def write_texts(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@given(text=st.text(min_size=1, max_size=40), data=st.data())
def test_spans_hold_exactly_the_supervised_characters(bytes_tokenizer, text, data):
    ids = bytes_tokenizer(text)["input_ids"]
    encoding = bytes_tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    marked = [data.draw(st.booleans()) for _ in text]
    # The tokens of one character are marked alike, so that every character has one answer.
    supervised = [any(marked[slice(*place)]) for place in encoding.offsets]
    row = Row(np.array(ids, dtype=np.int32), np.array(supervised, dtype=np.bool_))
    example = decode_row(row, bytes_tokenizer, "s")
    assert example.text == text
    inside = {n for start, end in example.spans for n in range(start, end)}
    wanted = {
        n
        for place, learned in zip(encoding.offsets, supervised, strict=True)
        if learned
        for n in range(*place)
    }
    assert inside == wanted


def test_a_character_of_several_tokens_is_on_the_side_of_its_last(bytes_tokenizer):
    ids = bytes_tokenizer("a😀b")["input_ids"]
    assert len(ids) == 6
    supervised = np.array([False, False, False, True, True, True])
    example = decode_row(Row(np.array(ids, dtype=np.int32), supervised), bytes_tokenizer, "s")
    assert (example.text, example.spans) == ("a😀b", ((1, 3),))


def test_examples_are_the_first_rows_of_each_source_in_turn(tmp_path, bytes_tokenizer):
    first = write_texts(tmp_path / "a.jsonl", ["red", "green", "blue"])
    second = write_texts(tmp_path / "b.jsonl", ["one", "two"])
    found = preview(tmp_path, bytes_tokenizer, f"{first},{second}", 4, eval_fraction=0)
    texts = [example.text.removesuffix("<|endoftext|>") for example in found.examples]
    assert texts == ["red", "one", "green", "two"]
    assert [example.source for example in found.examples] == ["a", "b", "a", "b"]


def test_lengths_fall_into_a_dozen_bins_at_most(tmp_path, bytes_tokenizer):
    path = write_texts(tmp_path / "a.jsonl", ["cat " * n for n in range(1, 60)])
    found = preview(tmp_path, bytes_tokenizer, path)
    bins = found.lengths.histogram
    assert 6 <= len(bins) <= 12
    assert sum(rows for _, _, rows in bins) == 59
    assert bins[0][0] <= found.lengths.min <= bins[0][1]
    assert all(left[1] + 1 == right[0] for left, right in zip(bins, bins[1:], strict=False))
    assert bins[-1][0] <= found.lengths.max <= bins[-1][1]


def test_ten_rejected_rows_of_each_kind_are_named(tmp_path, bytes_tokenizer):
    silent = json.dumps({"messages": [{"role": "user", "content": "red"}]})
    spoken = json.dumps({"messages": [{"role": "user", "content": "red"},
                                      {"role": "assistant", "content": "blue"}]})  # fmt: skip
    lines = ["{"] * 30 + [silent] * 12 + [spoken]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    found = preview(tmp_path, bytes_tokenizer, str(tmp_path / "a.jsonl"), on_bad_row="skip")
    assert (found.counts["bad_rows"], found.counts["unsupervised_rows"]) == (30, 12)
    places = [int(row.origin.rpartition(":")[2]) for row in found.rejected]
    assert places == [*range(1, 11), *range(31, 41)]


def test_pieces_without_a_token_to_learn_are_no_rejected_rows(tmp_path, bytes_tokenizer):
    messages = [
        {"role": "user", "content": "cat " * 60},
        {"role": "assistant", "content": "blue"},
    ]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    found = preview(
        tmp_path, bytes_tokenizer, str(tmp_path / "a.jsonl"), max_length=32, overlong="split"
    )
    assert found.counts["rejected_rows"] == 0
    assert (found.counts["rows"], found.counts["records"]) == (1, 1)
    assert found.counts["unsupervised_pieces"] >= 1


def test_overlong_rows_that_are_left_out_are_counted(tmp_path, bytes_tokenizer):
    path = write_texts(tmp_path / "a.jsonl", ["cat " * 60, "dog", "cat"])
    found = preview(tmp_path, bytes_tokenizer, path, max_length=32, overlong="drop")
    assert (found.counts["overlong_rows"], found.counts["dropped_overlong"]) == (1, 1)
    assert found.counts["rows"] == 2


def test_a_single_row_is_trained_on_wherever_its_hash_falls():
    for digest in (0, 2**63, 2**64 - 32):
        split = split_by_digest(np.array([digest], dtype=np.uint64), 0.5, 0.4)
        assert (len(split.train), len(split.evaluation), len(split.test)) == (1, 0, 0)

"""Which rows are trained on, held out or left out."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from bigft.data.example import find_copies
from bigft.data.order.select import Selection, describe_selection, open_selection, select_all
from bigft.data.section import DataSection
from bigft.data.sources.find import find_sources
from bigft.data.store.prepare import open_store
from bigft.data.store.rows import Rows
from bigft.errors import DataError

WORDS = [f"w{number}" for number in range(400)]


def open_rows(spec: str, section: DataSection, tokenizer: PreTrainedTokenizerFast) -> Rows:
    parts = find_sources(spec)
    stores = [open_store(part, section, tokenizer) for part in parts]
    return Rows(stores, [part.name for part in parts])


def select(rows: Rows, section: DataSection, evaluation: Rows | None = None, **more: Any) -> Any:
    weights = more.get("weights", [None] * len(rows.stores))
    return open_selection(rows, evaluation or rows, weights, section, seed=more.get("seed", 0))


def show(rows: Rows, numbers: Any, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    texts = [tokenizer.decode(rows.load_row(int(number)).input_ids) for number in numbers]
    return sorted(text.removesuffix("<|endoftext|>") for text in texts)


def make_text(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def test_repeated_rows_are_left_out_wherever_they_stand(
    make_section, write_lines, tokenizer
) -> None:
    one = write_lines("a.jsonl", [{"text": "x"}, {"text": "y"}, {"text": "x"}])
    two = write_lines("b.jsonl", [{"text": "z"}, {"text": "y"}, {"prompt": "x", "completion": "y"}])
    for duplicates, left_out in (("keep", 0), ("drop_exact", 2)):
        section = make_section(eval_fraction=0, clean={"duplicates": duplicates})
        rows = open_rows(f"{one},{two}", section, tokenizer)
        selection = select(rows, section)
        assert (selection.info.duplicate_rows, selection.info.dropped_duplicates) == (2, left_out)
        assert selection.info.train_rows == 6 - left_out
        shown = show(rows, selection.train.rows, tokenizer)
        assert shown == (["x", "xy", "y", "z"] if left_out else ["x", "x", "xy", "y", "y", "z"])


def test_the_pieces_of_one_long_text_are_no_duplicates_of_each_other(
    make_section, write_lines, tokenizer
) -> None:
    text = "one two three four " * 40
    path = write_lines("a.jsonl", [{"text": text}, {"text": text}])
    for duplicates in ("drop_exact", "drop_near"):
        clean = {"duplicates": duplicates}
        section = make_section(eval_fraction=0, max_length=16, clean=clean)
        rows = open_rows(path, section, tokenizer)
        selection = select(rows, section)
        half = len(rows) // 2
        assert half > 5
        assert sorted(selection.train.rows.tolist()) == list(range(half))
        assert selection.info.dropped_duplicates == half


def test_nearly_equal_rows_are_left_out_with_all_their_pieces(
    make_section, write_lines, tokenizer
) -> None:
    text = make_text(0, 200)
    other = text.replace(text.split()[77], "changed", 1)
    lines = [{"text": text}, {"text": make_text(1, 200)}, {"text": other}, {"text": other}]
    path = write_lines("a.jsonl", lines)
    section = make_section(eval_fraction=0, max_length=64, clean={"duplicates": "drop_near"})
    rows = open_rows(path, section, tokenizer)
    examples = {digest: n for n, digest in enumerate(dict.fromkeys(rows.digests.tolist()))}
    assert len(examples) == 3
    kept = select(rows, section).train.rows
    assert {examples[digest] for digest in rows.digests[kept].tolist()} == {0, 1}
    strict = make_section(
        eval_fraction=0, max_length=64, clean={"duplicates": "drop_near", "similarity": 1.0}
    )
    kept = select(open_rows(path, strict, tokenizer), strict).train.rows
    assert {examples[digest] for digest in rows.digests[kept].tolist()} == {0, 1, 2}


@pytest.fixture
def many(write_lines) -> str:
    return write_lines("many.jsonl", [{"text": make_text(n, 8)} for n in range(300)])


def test_each_row_is_trained_on_evaluated_on_or_kept_for_a_test(
    many: str, make_section, tokenizer
) -> None:
    section = make_section(eval_fraction=0.1, clean={"test_fraction": 0.2})
    rows = open_rows(many, section, tokenizer)
    selection = select(rows, section)
    train, held_out = set(selection.train.rows.tolist()), set(selection.evaluation.rows.tolist())
    assert not train & held_out
    info = selection.info
    assert (len(train), len(held_out)) == (info.train_rows, info.eval_rows)
    assert info.train_rows + info.eval_rows + info.test_rows == 300
    assert 10 < info.eval_rows < 55
    assert 30 < info.test_rows < 95
    # What is evaluated on does not depend on how much is kept for a test.
    without = make_section(eval_fraction=0.1)
    assert set(select(rows, without).evaluation.rows.tolist()) == held_out


def test_with_evaluation_data_of_their_own_all_rows_are_trained_on(
    many: str, make_section, write_lines, tokenizer
) -> None:
    section = make_section(eval_fraction=0.3)
    own = write_lines("own.jsonl", [{"text": "e"}, {"text": "f"}])
    rows, evaluation = open_rows(many, section, tokenizer), open_rows(own, section, tokenizer)
    selection = select(rows, section, evaluation)
    assert selection.info.train_rows == 300
    assert show(evaluation, selection.evaluation.rows, tokenizer) == ["e", "f"]
    assert select(rows, section).info.train_rows < 250


def test_changed_copies_are_never_held_out(many: str, make_section, tokenizer) -> None:
    clean = {"test_fraction": 0.1, "augment": {"copies": 3, "delete": 0.3}}
    section = make_section(eval_fraction=0.3, clean=clean)
    rows = open_rows(many, section, tokenizer)
    copies = find_copies(rows.digests)
    assert copies.sum() > 600
    selection = select(rows, section)
    assert not copies[selection.evaluation.rows].any()
    assert copies[selection.train.rows].sum() > 300
    # Nor are those trained on whose example is held out.
    held_out = set(rows.digests[selection.evaluation.rows].tolist())
    originals = rows.digests[selection.train.rows] & ~np.uint64(31)
    assert held_out.isdisjoint(originals.tolist())
    alone = select_all(rows, section)
    assert not copies[alone.rows].any()
    assert len(alone.rows) == 300


def test_weighted_parts_are_kept_apart(many: str, make_section, write_lines, tokenizer) -> None:
    small = write_lines("small.jsonl", [{"text": make_text(1000 + n, 8)} for n in range(20)])
    section = make_section(eval_fraction=0.1)
    rows = open_rows(f"{many},{small}", section, tokenizer)
    selection = select(rows, section, weights=[1.0, None])
    assert selection.weights == (1.0, 1.0)
    first, second = selection.train
    assert first.max() < 300 <= second.min()
    bins = selection.build_plan(rows, section, seed=0).bins(0)
    tokens = [rows.lengths[bins.rows[bins.rows < 300]].sum(), rows.lengths[bins.rows].sum() / 2]
    assert abs(tokens[0] - tokens[1]) <= rows.lengths.max()
    assert set(bins.rows.tolist()).isdisjoint(selection.evaluation.rows.tolist())


def test_a_weighted_part_of_which_nothing_is_left_is_named(
    many: str, make_section, write_lines, tokenizer
) -> None:
    twice = write_lines("twice.jsonl", [{"text": make_text(0, 8)}])
    section = make_section(clean={"duplicates": "drop_exact"}, eval_fraction=0)
    rows = open_rows(f"{many},{twice}", section, tokenizer)
    with pytest.raises(DataError, match="--data: no row of twice is left to be weighted"):
        select(rows, section, weights=[1.0, 1.0])
    assert select(rows, section).info.train_rows == 300


def test_without_a_row_to_train_on_there_is_no_run(make_section, write_lines, tokenizer) -> None:
    path = write_lines("a.jsonl", [{"text": f"{n}"} for n in range(5)])
    section = make_section(eval_fraction=0.01, clean={"test_fraction": 0.99})
    rows = open_rows(path, section, tokenizer)
    with pytest.raises(DataError, match=r"no row is left to train on; lower .*test_fraction"):
        select(rows, section)


# Kept in the cache.


def find_plan(tmp_path: Path, selection: Selection) -> Path:
    return tmp_path / "cache" / "plans" / selection.info.digest


def test_a_choice_is_made_once(many: str, tmp_path, make_section, tokenizer) -> None:
    section = make_section()
    rows = open_rows(many, section, tokenizer)
    first = select(rows, section)
    file = find_plan(tmp_path, first) / "train_rows.npy"
    written = file.stat().st_mtime_ns
    again = select(rows, section, seed=5)
    assert file.stat().st_mtime_ns == written
    assert again.info == first.info
    assert np.array_equal(again.train.rows, first.train.rows)
    digests = {first.info.digest}
    for other in ({"max_length": 64}, {"packing": "none"}, {"eval_fraction": 0.3}):
        changed = make_section(**other)
        digests.add(select(rows, changed).info.digest)
    digests.add(select(rows, section, weights=[1.0]).info.digest)
    digests.add(select(rows, section, weights=[1.0], seed=5).info.digest)
    assert len(digests) == 6


@pytest.mark.parametrize("name", ["train_rows.npy", "eval_starts.npy", "info.json"])
@pytest.mark.parametrize("content", [None, "", json.dumps({"unknown": 1})])
def test_a_damaged_choice_is_named_with_the_repair(
    name: str, content: str | None, tmp_path, make_section, write_lines, tokenizer
) -> None:
    path = write_lines("a.jsonl", [{"text": "x"}, {"text": "y"}])
    section = make_section()
    rows = open_rows(path, section, tokenizer)
    folder = find_plan(tmp_path, select(rows, section))
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(DataError, match=f"{folder} is damaged .*delete this folder"):
        select(rows, section)


def test_what_was_chosen_is_counted(many: str, make_section, tokenizer) -> None:
    section = make_section(eval_fraction=0.1, max_length=64)
    rows = open_rows(many, section, tokenizer)
    selection = select(rows, section)
    info = describe_selection(selection, selection.train, rows, section.max_length)
    assert info["train_sequences"] == len(selection.train)
    assert info["eval_sequences"] == len(selection.evaluation)
    used = rows.lengths[selection.train.rows].sum() / (64 * len(selection.train))
    assert info["packing_utilisation"] == pytest.approx(used)
    assert info["train_rows"] + info["eval_rows"] == 300

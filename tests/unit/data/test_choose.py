"""A choice that depends on what examples say, and on nothing else."""

import json
import random

import pytest

from bigft.data.choose import choose_examples, find_examples
from bigft.data.example import PromptAnswer, compute_digest
from bigft.data.section import DataSection
from bigft.errors import DataError


def _write(path, numbers):
    rows = [json.dumps({"prompt": f"question {n}", "completion": f"answer {n}"}) for n in numbers]
    path.write_text("\n".join(rows))
    return str(path)


def _choose(spec, limit=None):
    return [chosen.example for chosen in choose_examples(DataSection(train=spec), limit)]


def test_the_choice_is_the_same_in_any_order_and_grows(tmp_path):
    numbers = list(range(200))
    ordered = _write(tmp_path / "a.jsonl", numbers)
    random.Random(0).shuffle(numbers)
    shuffled = _write(tmp_path / "b.jsonl", numbers)
    every = _choose(ordered)
    assert len(every) == 200
    assert every == _choose(shuffled)
    for limit in (1, 20, 150, 200, 500):
        assert _choose(shuffled, limit) == every[:limit]
    # Chosen by a hash: not the first rows of the file.
    assert _choose(ordered, 20) != [PromptAnswer(f"question {n}", f"answer {n}") for n in range(20)]


def test_equal_rows_are_one_example(tmp_path):
    spec = _write(tmp_path / "a.jsonl", [1, 2, 1, 3, 2, 1])
    assert len(_choose(spec)) == 3
    assert _choose(spec, 2) == _choose(spec)[:2]


def test_parts_are_numbered_and_bad_rows_passed_over(tmp_path):
    _write(tmp_path / "a.jsonl", range(3))
    (tmp_path / "b.jsonl").write_text('{"prompt": "x", "completion": "y"}\nno JSON\n{"odd": 1}\n')
    spec = f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl"
    found = choose_examples(DataSection(train=spec), None)
    assert sorted(chosen.source for chosen in found) == [0, 0, 0, 1]
    assert [c.digest for c in found] == sorted(c.digest for c in found)


def test_examples_are_found_by_their_digests_as_they_are_cleaned(tmp_path):
    spec = _write(tmp_path / "a.jsonl", range(30))
    section = DataSection(train="unused")
    every = choose_examples(DataSection(train=spec), None)
    wanted = [every[n].digest for n in (7, 2, 19)]
    assert find_examples(spec, "--eval_data", section, [*wanted, 1]) == [
        every[n] for n in (7, 2, 19)
    ]
    (tmp_path / "b.jsonl").write_text('{"prompt": "x ", "completion": "y\\n"}')
    stripped = DataSection(train="unused", clean={"strip": True})
    digest = compute_digest(PromptAnswer("x ", "y"))
    (found,) = find_examples(f"{spec},{tmp_path}/b.jsonl", "--data", stripped, [digest])
    assert (found.example, found.source) == (PromptAnswer("x ", "y"), 1)


def test_missing_data_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl"):
        choose_examples(DataSection(train=str(tmp_path / "none.jsonl")), 3)

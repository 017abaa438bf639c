"""What another host says of its checkpoints is looked at before it is used."""

import json
from pathlib import Path

import pytest

from bigft.checkpoint.ask import read_answer
from bigft.checkpoint.holdings import Holding, list_commits, to_plain

GOOD = Holding("step_00000007", 7, "d7", 7, 2, ("state/a",))


def answer(**changes):
    (row,) = to_plain([GOOD])
    return json.dumps({"folder": "/data/run", "holdings": [{**row, **changes}]})


def test_an_answer_arrives_as_it_was_said():
    assert read_answer(answer()) == (Path("/data/run"), [GOOD])


def test_what_it_says_cannot_change_the_terminal():
    _, (found,) = read_answer(answer(problem="torn\x1b[2J"))
    assert "\x1b" not in found.problem
    assert "torn" in found.problem


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../other"},
        {"name": "/etc"},
        {"name": ".."},
        {"name": ""},
        {"name": None},
        {"step": "7"},
        {"step": True},
        {"digest": ["d7"]},
        {"sequence": "newest"},
        {"num_files": None},
        {"present": 3},
        {"present": [["state/a"]]},
        {"problem": {}},
        {"other": 1},
    ],
)
def test_what_is_no_answer_is_refused(changes):
    with pytest.raises(ValueError, match="no answer"):
        list_commits([[GOOD], read_answer(answer(**changes))[1]])


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"folder": 3}', "[" * 100_000])
def test_what_is_no_json_is_refused(text):
    with pytest.raises(ValueError, match="."):
        read_answer(text)

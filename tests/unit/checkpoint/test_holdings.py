"""Which checkpoints count when several storages hold parts of them."""

import pytest

from bigft.checkpoint.holdings import (
    Holding,
    choose_obsolete,
    finish,
    list_commits,
    settle,
    survey,
)
from bigft.checkpoint.resume_apart import choose_commit
from bigft.errors import CheckpointError


def part(step, storage, *, digest=None, sequence=None, name=None):
    """What one of two storages holds: its own file of two."""
    return Holding(
        name or f"step_{step:08d}",
        step,
        digest or f"d{step}",
        sequence or step,
        2,
        (f"state/{storage}",),
    )


def test_a_commit_is_whole_over_all_storages_together():
    (half,) = list_commits([[part(1, 0)], []])
    (whole,) = list_commits([[part(1, 0)], [part(1, 1)]])
    assert not half.is_whole
    assert whole.is_whole


def test_what_was_decided_is_finished_and_what_was_not_is_left():
    prepared = part(2, 1, name=".tmp-step_00000002-x")
    assert settle([[part(1, 0), part(2, 0)], [part(1, 1), prepared]]) == ["d2"]
    undecided = part(2, 0, name=".tmp-step_00000002-x")
    assert settle([[part(1, 0), undecided], [part(1, 1), prepared]]) == []


def test_of_a_step_that_was_replaced_on_one_storage_the_later_save_counts():
    left = ".tmp-step_00000005-x"
    old, new = {"digest": "old", "sequence": 8}, {"digest": "new", "sequence": 9}
    here = [part(5, 0, **new), part(5, 0, **old, name=left)]
    there = [part(5, 1, **old), part(5, 1, **new, name=left)]
    assert settle([here, there]) == ["new"]
    # Where the later one cannot be whole any more, the earlier one gets its name back.
    assert settle([here, there[:1]]) == ["old"]


def test_rotation_counts_what_is_whole_everywhere():
    here = [part(step, 0) for step in (1, 2, 3, 4)]
    there = [part(step, 1) for step in (1, 2, 4)]
    # Step 3 is not whole: 2 and 4 are the newest two that are.
    assert choose_obsolete([here, there], 2, []) == ["d1"]
    assert choose_obsolete([here, there], 1, []) == ["d1", "d2", "d3"]
    assert choose_obsolete([here, there], 1, ["step_00000002"]) == ["d1", "d3"]
    assert choose_obsolete([here, there], 4, []) == []


def test_the_newest_whole_one_is_taken_and_the_damaged_are_named():
    surveys = [[part(1, 0), part(2, 0)], [part(1, 1), Holding("step_00000002", 2, problem="torn")]]
    commit, places, problems = choose_commit(
        surveys, lambda one: None if one.is_whole else f"step {one.step} lacks files"
    )
    assert commit is not None
    assert commit.step == 1
    assert sorted(places) == [(0, "step_00000002"), (1, "step_00000002")]
    assert problems == ["torn", "step 2 lacks files"]


def test_nothing_is_begun_anew_while_there_are_damaged_ones():
    with pytest.raises(CheckpointError, match="start anew with --resume never"):
        choose_commit([[part(1, 0)], []], lambda one: "lacks files")
    assert choose_commit([[], []], lambda one: None) == (None, [], [])


def test_folders_that_are_no_checkpoint_are_not_held(tmp_path):
    for name in (".tmp-trash-step_00000001", ".tmp-step_00000002-x", "step_00000003", "other"):
        (tmp_path / name).mkdir()
    (found,) = survey(tmp_path)
    assert (found.name, found.digest) == ("step_00000003", "")
    assert "never committed" in found.problem
    finish(tmp_path, ["d1"])
    assert survey(tmp_path / "nowhere") == []

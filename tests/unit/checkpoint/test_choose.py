from pathlib import Path

import pytest

from bigft.checkpoint.choose import choose_whole
from bigft.errors import CheckpointError


def _make(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.mkdir()
    return paths


def test_first_whole_one_is_taken_and_the_damaged_before_it_are_kept(tmp_path: Path):
    paths = _make(tmp_path, "step_00000003", "step_00000002", "step_00000001")
    asked = []

    def check(folder: Path) -> str | None:
        asked.append(folder)
        return "bad" if folder == paths[0] else None

    chosen, notes = choose_whole(paths, check, is_rank_zero=True)
    assert chosen == paths[1]
    assert notes == [
        "warning: bad. It is kept as damaged-step_00000003. The checkpoint before it is used"
    ]
    assert asked == paths[:2]
    assert (tmp_path / "damaged-step_00000003").is_dir()


def test_only_rank_zero_renames(tmp_path: Path):
    paths = _make(tmp_path, "step_00000003", "step_00000002")
    check = {paths[0]: "bad", paths[1]: None}.get
    assert choose_whole(paths, check, is_rank_zero=False)[0] == paths[1]
    assert paths[0].is_dir()


def test_nothing_to_choose_from_is_a_new_start():
    assert choose_whole([], lambda folder: None, is_rank_zero=True) == (None, [])


def test_run_whose_checkpoints_are_all_damaged_stops_each_time(tmp_path: Path):
    """Were they renamed, the second try would begin anew as if there had never been any."""
    paths = _make(tmp_path, "step_00000003", "step_00000002")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="--resume never") as caught:
            choose_whole(paths, lambda folder: f"{folder.name} is bad", is_rank_zero=True)
        assert "step_00000003 is bad\nstep_00000002 is bad" in str(caught.value)
        assert all(path.is_dir() for path in paths)

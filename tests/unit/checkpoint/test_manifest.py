import json
import logging
from pathlib import Path

import pytest

from bigft.checkpoint.manifest import (
    find_committed,
    find_newest,
    read_manifest,
    write_manifest,
)
from bigft.errors import CheckpointError


def make_step(folder: Path, step: int = 5) -> Path:
    step_dir = folder / f"step_{step:08d}"
    (step_dir / "shards").mkdir(parents=True)
    (step_dir / "shards" / "a.pt").write_bytes(b"abc")
    (step_dir / "shards" / "manifest.json").write_text("{}")
    (step_dir / "rng.json").write_text("{}")
    write_manifest(step_dir, {"step": step, "world_size": 2, "zero_stage": 3})
    return step_dir


def test_manifest_lists_every_file_and_keeps_the_facts(tmp_path: Path) -> None:
    manifest = read_manifest(make_step(tmp_path))
    assert (manifest["step"], manifest["world_size"], manifest["zero_stage"]) == (5, 2, 3)
    sizes = {entry["path"]: entry["size"] for entry in manifest["files"]}
    assert sizes == {"rng.json": 2, "shards/a.pt": 3, "shards/manifest.json": 2}


def test_manifest_can_be_written_again_after_a_crash(tmp_path: Path) -> None:
    step_dir = make_step(tmp_path)
    (step_dir / "manifest.json.tmp").write_text("half")
    write_manifest(step_dir, {"step": 5})
    assert len(read_manifest(step_dir)["files"]) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": [{"path": "a"}]}', '"x"'])
def test_damaged_manifest_is_refused(tmp_path: Path, content: str) -> None:
    step_dir = make_step(tmp_path)
    (step_dir / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json: damaged"):
        read_manifest(step_dir)


def test_missing_and_short_files_are_named_together(tmp_path: Path) -> None:
    step_dir = make_step(tmp_path)
    (step_dir / "rng.json").unlink()
    (step_dir / "shards" / "a.pt").write_bytes(b"ab")
    with pytest.raises(CheckpointError) as caught:
        read_manifest(step_dir)
    text = str(caught.value)
    assert "rng.json: missing" in text
    assert "a.pt: has 2 bytes, the checkpoint's manifest says 3" in text


def test_file_outside_the_checkpoint_is_refused(tmp_path: Path) -> None:
    step_dir = make_step(tmp_path)
    (tmp_path / "outside").write_bytes(b"abc")
    files = [{"path": "../outside", "size": 3}]
    files[0]["sha256"] = "0" * 64
    (step_dir / "manifest.json").write_text(json.dumps({"files": files}))
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        read_manifest(step_dir)


def test_folder_without_manifest_was_never_committed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="never committed"):
        read_manifest(tmp_path)


def test_committed_checkpoints_come_in_the_order_of_their_commits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = [make_step(tmp_path, step) for step in (100_000_000, 20, 3, 7)]
    (steps[3] / "rng.json").write_text("damaged")
    make_step(tmp_path / "step_00000009.tmp-1", 9)
    (tmp_path / "latest").write_text("step_00000020")
    with caplog.at_level(logging.WARNING):
        assert find_committed(tmp_path) == [steps[0], steps[1], steps[2]]
    assert "rng.json: has 7 bytes" in caplog.text


def test_no_checkpoints_folder_has_no_checkpoints(tmp_path: Path) -> None:
    assert find_committed(tmp_path / "none") == []


def test_newest_is_the_one_that_the_run_wrote_last(tmp_path: Path) -> None:
    """After a new start in an old folder the last one is not the one with the highest step."""
    assert find_newest(tmp_path / "none") is None
    old, new = make_step(tmp_path, 20), make_step(tmp_path, 3)
    assert find_newest(tmp_path) == new
    (new / "rng.json").write_text("damaged")
    assert find_newest(tmp_path) == old

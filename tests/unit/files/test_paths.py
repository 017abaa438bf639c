"""No name in a file of a checkpoint or a model leads out of its folder."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from state_files import write_state
from zero_files import write_zero_checkpoint

from bigft.checkpoint.consolidate import consolidate
from bigft.checkpoint.manifest import read_manifest, write_manifest
from bigft.errors import BigftError, CheckpointError
from bigft.files.paths import find_escape
from bigft.models.facts import read_facts
from bigft.models.section import ModelSection

NAMES = [
    "../outside",
    "..",
    ".",
    "",
    "/",
    "/etc/passwd",
    "inside/../../outside",
    "./../outside",
    "..//outside",
    "inside/../../../outside",
    "a\0b",
    "\udcff/../../outside",
    "x" * 300,
    "..\\outside",
    "link/outside",
]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder and a file beside the one that has to be stayed in."""
    folder = tmp_path / "outside"
    write_zero_checkpoint(folder, {"secret": torch.ones(3)})
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "link").symlink_to(tmp_path)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_tag_of_a_stock_checkpoint(tmp_path: Path, outside: Path, name: str) -> None:
    home = tmp_path / "home"
    (home / "latest").write_bytes(name.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match="latest: "):
        consolidate(home, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", NAMES)
def test_file_of_a_manifest(tmp_path: Path, outside: Path, name: str) -> None:
    home = tmp_path / "home"
    (home / "link").unlink()
    write_state(home, {"w": torch.ones(3)})
    write_manifest(home, {"step": 7})
    manifest = json.loads((home / "manifest.json").read_text())
    manifest["files"][0]["path"] = name
    (home / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError):
        read_manifest(home)
    with pytest.raises(CheckpointError):
        consolidate(home, tmp_path / "out")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_file_of_a_models_index(tmp_path: Path, outside: Path, name: str, index: str) -> None:
    home = tmp_path / "home"
    (home / "config.json").write_text('{"model_type": "llama"}')
    (home / index).write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(BigftError):
        read_facts(ModelSection(name=str(home)))


def link_shard(home: Path, outside: Path) -> Path:
    for path in outside.iterdir():
        (home / path.name).symlink_to(path)
    return home


def link_tag(home: Path, outside: Path) -> Path:
    (home / "latest").write_text("tag")
    (home / "tag").symlink_to(outside)
    return home


def link_state(home: Path, outside: Path) -> Path:
    (home / "link").unlink()
    state = write_state(home, {"w": torch.ones(3)})
    write_manifest(home, {"step": 7})
    moved = outside / "rank_00001.safetensors"
    (state / moved.name).rename(moved)
    (state / moved.name).symlink_to(moved)
    return home


@pytest.mark.parametrize("make", [link_shard, link_tag, link_state])
def test_link_out_of_a_checkpoint(
    tmp_path: Path, outside: Path, make: Callable[[Path, Path], Path]
) -> None:
    with pytest.raises(CheckpointError, match="lead|outside"):
        consolidate(make(tmp_path / "home", outside), tmp_path / "out")


def test_link_out_of_a_model(tmp_path: Path, outside: Path) -> None:
    home = tmp_path / "home"
    (home / "config.json").write_text('{"model_type": "llama"}')
    (home / "w.safetensors").symlink_to(next(outside.iterdir()))
    (home / "model.safetensors.index.json").write_text('{"weight_map": {"w": "w.safetensors"}}')
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        read_facts(ModelSection(name=str(home)))


def test_links_into_the_hubs_cache_are_inside(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    blobs = tmp_path / "models--org--name" / "blobs"
    (snapshot / "tag").mkdir(parents=True)
    write_zero_checkpoint(blobs, {"w": torch.ones(3)})
    for path in blobs.iterdir():
        (snapshot / "tag" / path.name).symlink_to(os.path.relpath(path, snapshot / "tag"))
    (snapshot / "latest").write_text("tag")
    consolidate(snapshot, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    (snapshot / "other").symlink_to(tmp_path)
    assert find_escape(snapshot / "other", snapshot) == tmp_path


def test_loop_of_links_is_outside(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    place = find_escape(tmp_path / "a", tmp_path)
    assert place is None or not place.exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "name", ["zero_pp_rank_0_mp_rank_00_model_states.pt", "latest", "manifest.json"]
)
def test_pipe_with_a_checkpoints_name_is_not_waited_for(tmp_path: Path, name: str) -> None:
    (tmp_path / "saved").mkdir()
    os.mkfifo(tmp_path / "saved" / name)
    with pytest.raises(CheckpointError):
        consolidate(tmp_path / "saved", tmp_path / "out")

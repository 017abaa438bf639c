"""Damage after the fact is found before anything is built on it, and the older one is used."""

import contextlib
import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
from situations import ASSETS, INDEX, save_in_threads, shard_name

from bigft.checkpoint import manifest as manifest_module
from bigft.checkpoint.choose import choose_whole
from bigft.checkpoint.content import verify_files
from bigft.checkpoint.manifest import find_candidates, read_manifest
from bigft.errors import CheckpointError

MANIFEST = "manifest.json"
FILES = (*(shard_name(rank) for rank in range(4)), INDEX, *ASSETS, MANIFEST)


def _flip(path: Path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def _swap(path: Path) -> None:
    other = path.with_name("rank_00001.safetensors" if "rank_00000" in path.name else "x")
    if not other.exists():
        other = path.parents[0 if path.name == MANIFEST else 1] / shard_name(0)
    spare = path.with_name("spare")
    path.rename(spare)
    other.rename(path)
    spare.rename(other)


def _link_out(path: Path) -> None:
    outside = path.parents[4] / f"outside-{path.name}"
    path.rename(outside)
    path.symlink_to(outside)


def _edit(path: Path) -> None:
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "tokens": 7}))


DAMAGES = {
    "empty": lambda path, donors: path.write_bytes(b""),
    "half": lambda path, donors: os.truncate(path, path.stat().st_size // 2),
    # The last byte of a manifest is a line end, which nobody misses.
    "a byte less": lambda path, donors: os.truncate(
        path, path.stat().st_size - (2 if path.name == MANIFEST else 1)
    ),
    "a byte more": lambda path, donors: path.write_bytes(path.read_bytes() + b"x"),
    "first bit": lambda path, donors: _flip(path, 0),
    "a late bit": lambda path, donors: _flip(path, -2, 6),
    "missing": lambda path, donors: path.unlink(),
    "of another step": lambda path, donors: shutil.copy(donors["step"] / path.name, path),
    "of another world": lambda path, donors: shutil.copy(donors["world"] / path.name, path),
    "swapped": lambda path, donors: _swap(path),
    "a link out": lambda path, donors: _link_out(path),
    # Beside the manifest a file harms nobody; there its own words are changed instead.
    "extra": lambda path, donors: (
        _edit(path) if path.name == MANIFEST else shutil.copy(path, path.with_suffix(".more"))
    ),
}


def _problem(folder: Path) -> str | None:
    try:
        verify_files(folder, read_manifest(folder))
    except CheckpointError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Steps 10 and 20 of four ranks, and step 20 of two ranks elsewhere."""
    folder = tmp_path_factory.mktemp("sound")
    for name, step, tag, size in (
        ("run", 10, "ten", 4),
        ("run", 20, "twenty", 4),
        ("world", 20, "other", 2),
    ):
        results = save_in_threads(folder / name / "checkpoints", step, tag, 9, world_size=size)
        assert all(isinstance(result, Path) for result in results)
    return folder


def _donors(sound: Path, name: str) -> dict[str, Path]:
    """Folders with a file of the same name from elsewhere."""
    part = Path(name).parent
    world = sound / "world/checkpoints/step_00000020"
    return {"step": sound / "run/checkpoints/step_00000010" / part, "world": world / part}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_and_the_older_checkpoint_is_used(sound, tmp_path, name, damage):
    shutil.copytree(sound / "run", tmp_path / "run")
    checkpoints = tmp_path / "run/checkpoints"
    newest = checkpoints / "step_00000020"
    donors = _donors(sound, name)
    if damage == "of another world" and not (donors["world"] / Path(name).name).exists():
        donors["world"] = donors["world"].parent / "state"
        shutil.copy(donors["world"] / "rank_00001.safetensors", newest / name)
    else:
        DAMAGES[damage](newest / name, donors)
    before = sorted(path.relative_to(newest) for path in newest.rglob("*"))

    assert (problem := _problem(newest)) is not None
    assert Path(name).stem in problem
    chosen, notes = choose_whole(find_candidates(checkpoints), _problem, is_rank_zero=True)
    assert chosen == checkpoints / "step_00000010"
    assert len(notes) == 1
    assert "step_00000020" in notes[0]
    assert "kept as damaged-step_00000020" in notes[0]
    kept = checkpoints / "damaged-step_00000020"
    assert sorted(path.relative_to(kept) for path in kept.rglob("*")) == before


def test_there_are_as_many_cases_as_the_target_asks_for():
    assert len(FILES) * len(DAMAGES) >= 96


@pytest.mark.parametrize(
    "content", [b"", b"step_00000099\n", b"../../elsewhere\n", b"\xff\xfe\x00", None]
)
def test_latest_is_not_trusted(sound, tmp_path, content):
    shutil.copytree(sound / "run", tmp_path / "run")
    checkpoints = tmp_path / "run/checkpoints"
    (checkpoints / "latest").unlink()
    if content is not None:
        (checkpoints / "latest").write_bytes(content)
    chosen, notes = choose_whole(find_candidates(checkpoints), _problem, is_rank_zero=True)
    assert (chosen, notes) == (checkpoints / "step_00000020", [])
    save_in_threads(checkpoints, 30, "next", 9)
    assert (checkpoints / "latest").read_text() == "step_00000030\n"


def test_every_single_bit_of_a_manifest_counts(sound, tmp_path):
    shutil.copytree(sound / "run/checkpoints/step_00000020", tmp_path / "step_00000020")
    path = tmp_path / "step_00000020" / MANIFEST
    data = path.read_bytes()
    meant = json.loads(data)
    unnoticed = []
    # In place: a file that is cut and written anew is put on disk each time.
    with path.open("r+b", buffering=0) as file:
        for place, bit in itertools.product(range(len(data)), range(8)):
            os.pwrite(file.fileno(), bytes([data[place] ^ 1 << bit]), place)
            with contextlib.suppress(CheckpointError):
                if read_manifest(path.parent) != meant:
                    unnoticed.append((place, bit))
            os.pwrite(file.fileno(), data[place : place + 1], place)
    print(f"{len(data) * 8:,} bits")
    assert unnoticed == []


def test_sizes_alone_do_not_find_a_flipped_bit(sound, tmp_path, monkeypatch):
    """What the digests are for: without them these two kinds of damage go through."""
    folder = tmp_path / "step_00000020"
    shutil.copytree(sound / "run/checkpoints/step_00000020", folder)
    _flip(folder / shard_name(1), 100)
    manifest = read_manifest(folder)
    with pytest.raises(CheckpointError, match="rank_00001"):
        verify_files(folder, manifest)
    monkeypatch.setattr(manifest_module, "_digest", lambda rest: manifest["digest"])
    _edit(folder / MANIFEST)
    assert read_manifest(folder)["tokens"] == 7

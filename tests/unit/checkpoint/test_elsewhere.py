"""Missing files are named with their hosts; what a manifest says stays in its quotes."""

import shlex
from pathlib import Path

import pytest

from bigft.checkpoint.elsewhere import (
    PartsElsewhereError,
    explain_lost,
    find_hosts,
    find_lost,
    list_parts,
)
from bigft.checkpoint.files import FileRecord
from bigft.checkpoint.manifest import format_manifest, read_manifest
from bigft.errors import CheckpointError

NAMES = ["state/rank_00000.safetensors", "state/rank_00001.safetensors"]


def manifest_of(host="w2", path="/data/run/checkpoints/step_00000007"):
    return {
        "files": [{"path": name} for name in NAMES],
        "storages": [
            {"hosts": ["w1"], "path": "/data", "files": NAMES[:1]},
            {"hosts": [host], "path": path, "files": NAMES[1:]},
        ],
    }


def test_missing_files_are_named_with_host_path_and_command():
    manifest = manifest_of()
    lost = find_lost(manifest, NAMES[:1])
    text = explain_lost(Path("/data/run/checkpoints/step_00000007"), manifest, lost)
    assert lost == NAMES[1:]
    assert find_hosts(manifest, lost) == ["w2"]
    assert "1 of its 2 files are not here: state/rank_00001.safetensors on w2 in /data/run" in text
    place = "/data/run/checkpoints/step_00000007/"
    assert f"`rsync -a -- w2:{place} {place}`" in text
    assert "bigft consolidate /data/run/checkpoints/step_00000007 --hostfile FILE" in text


@pytest.mark.parametrize(
    "host", ["$(touch x)", "a;b", "-oProxyCommand=x", "\x1b[31mred", "a\nb", "`id`", "'\"", "a b"]
)
def test_hostile_hosts_and_paths_stay_in_their_quotes(host):
    manifest = manifest_of(host, f"/data/{host}")
    text = explain_lost(Path("/x"), manifest, NAMES[1:])
    assert text.isprintable()
    command = text.split("(`")[1].split("`), or")[0]
    words = shlex.split(command)
    assert words[:3] == ["rsync", "-a", "--"]
    assert len(words) == 5


def test_of_a_checkpoint_on_two_hosts_one_cannot_be_read_alone(tmp_path):
    folder = tmp_path / "step_00000007"
    (folder / "state").mkdir(parents=True)
    (folder / NAMES[0]).write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    records = [FileRecord(name, 0, empty) for name in NAMES]
    facts = {"step": 7, "storages": manifest_of()["storages"]}
    (folder / "manifest.json").write_text(format_manifest(facts, records))
    with pytest.raises(PartsElsewhereError, match="on w2"):
        read_manifest(folder)
    (folder / NAMES[1]).write_bytes(b"")
    assert read_manifest(folder)["step"] == 7


def test_damaged_storages_are_an_error():
    for storages in (3, ["a"], [{"hosts": ["a"]}], [{"hosts": 3, "path": "x", "files": []}]):
        with pytest.raises(CheckpointError, match="damaged"):
            list_parts({"storages": storages})

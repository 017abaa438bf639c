"""What comes from another host is bounded by what it was said to be; a shell plays ssh."""

import time
from pathlib import Path

import pytest

from bigft.checkpoint.files import FileRecord, hash_file
from bigft.checkpoint.holdings import Commit, Holding
from bigft.checkpoint.manifest import format_manifest
from bigft.commands.parts import gathering
from bigft.errors import CheckpointError

NAME = "state/rank_00001.safetensors"


@pytest.fixture
def found(tmp_path, monkeypatch):
    """A checkpoint on another host, whose disk is a folder of this one."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text('#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(ssh.parent), prepend=":")
    there = tmp_path / "there"
    (there / "step_00000007/state").mkdir(parents=True)
    commit = Commit("d7", 7, 7, 1, {1: [Holding("step_00000007", 7, "d7", 7, 1, (NAME,))]})
    return gathering._Found(commit, ("", "w2"), (tmp_path, there))


def test_a_file_comes_as_it_is(found, tmp_path):
    content = bytes(range(256)) * 9000
    found.place(1).joinpath(NAME).write_bytes(content)
    gathering._fetch(found, 1, NAME, tmp_path / "here", len(content))
    assert (tmp_path / "here" / NAME).read_bytes() == content


@pytest.mark.parametrize(("size", "said"), [(999, "1,000 bytes came and more"), (1001, "1,000 b")])
def test_a_file_of_another_size_is_refused_with_host_and_sizes(found, tmp_path, size, said):
    found.place(1).joinpath(NAME).write_bytes(bytes(1000))
    with pytest.raises(CheckpointError) as caught:
        gathering._fetch(found, 1, NAME, tmp_path / "here", size)
    text = str(caught.value)
    assert text.startswith(f"w2:{found.place(1)}/{NAME}: did not come ({said}")
    assert f"its manifest says {size:,}" in text


@pytest.mark.parametrize(("size", "limit"), [(1000, "says 1,000)"), (None, "has more than 5,000)")])
def test_a_file_without_end_does_not_fill_the_disk(found, tmp_path, monkeypatch, size, limit):
    monkeypatch.setattr(gathering, "_MOST_MANIFEST", 5000)
    found.place(1).joinpath(NAME).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="bytes came and more may") as caught:
        gathering._fetch(found, 1, NAME, tmp_path / "here", size)
    assert limit in str(caught.value)
    assert (tmp_path / "here" / NAME).stat().st_size <= 5000


def test_a_host_that_says_nothing_is_given_up(found, tmp_path, monkeypatch):
    monkeypatch.setattr(gathering, "_STALL_SECONDS", 0.3)
    monkeypatch.setattr(gathering, "render_ssh", lambda *words: ["sleep", "60"])
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=r"nothing came for 0\.3 s"):
        gathering._fetch(found, 1, NAME, tmp_path / "here", 1000)
    assert time.monotonic() - began < 10


def test_what_the_other_host_says_is_the_reason(found, tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        gathering._fetch(found, 1, NAME, tmp_path / "here", 1000)


def test_what_two_hosts_have_is_put_together_from_a_place_that_has_nothing(tmp_path, monkeypatch):
    """Each host sees its own disk under the same path."""
    run, disks = tmp_path / "run", {name: tmp_path / name for name in ("w1", "w2")}
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    # The host is the last word but one; what it is told, and what it reads, is of its own disk.
    ssh.write_text(
        "#!/bin/sh\nfor last; do host=$next; next=$last; done\n"
        f'there="s#{run}#{tmp_path}/$host#g"\n'
        'sed "$there" | sh -c "$(printf %s "$last" | sed "$there")"\n'
    )
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(ssh.parent), prepend=":")
    records = []
    for name, disk in disks.items():
        file = disk / f"checkpoints/step_00000007/state/{name}"
        file.parent.mkdir(parents=True)
        file.write_text(name * 99)
        records.append(FileRecord(f"state/{name}", file.stat().st_size, hash_file(file)))
    parts = [{"hosts": [n], "path": "/run", "files": [f"state/{n}"]} for n in disks]
    text = format_manifest({"step": 7, "sequence": 1, "storages": parts}, records)
    for disk in disks.values():
        (disk / "checkpoints/step_00000007/manifest.json").write_text(text)
    hostfile = tmp_path / "hosts"
    hostfile.write_text("w1 slots=1\nw2 slots=1\n")
    told = []

    def progress(*words):
        told.append(words)

    with gathering.gathered(run, hostfile, tmp_path / "out", progress) as source:
        assert {p.name: p.read_text() for p in source.folder.iterdir()} == {
            name: name * 99 for name in disks
        }
    assert sorted(told) == [("gathering", 198, 396)] * 2
    assert not list(tmp_path.glob("out*"))


def test_files_of_this_host_need_no_room(found, tmp_path):
    """They are linked, where they lie on the disk to which the others are brought."""
    here = gathering._HERE
    both = gathering._Found(found.commit, (here, "w2"), (tmp_path, found.folders[1]))
    both.commit.held[0] = both.commit.held[1]
    (tmp_path / "step_00000007").mkdir()
    assert both.is_beside(0, tmp_path)
    assert not both.is_beside(1, tmp_path)
    assert not both.is_beside(0, Path("/proc"))

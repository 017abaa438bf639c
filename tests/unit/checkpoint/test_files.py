import hashlib
import os
from array import array
from pathlib import Path

import pytest

from bigft.checkpoint.files import FileRecord, Files, explain_name, hash_file, sync
from bigft.errors import CheckpointError

BAD_NAMES = [
    "",
    ".",
    "..",
    "../x",
    "a/../../x",
    "a/../x",
    "/etc/passwd",
    "//x",
    "a//b",
    "./a",
    "a/",
    "a/./b",
    "a\0b",
    "\ud800",
]


def _fill(files: Files, name: str, *pieces: bytes) -> None:
    with files.create(name) as file:
        for piece in pieces:
            file.write(piece)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_leave_the_folder_or_are_not_plain_are_refused(tmp_path: Path, name: str):
    files = Files(tmp_path / "folder")
    files.folder.mkdir()
    for call in (files.create, files.adopt):
        with pytest.raises(CheckpointError, match="folder"):
            call(name)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


@pytest.mark.parametrize("name", ["a", "state/rank_00000.safetensors", "..a", "a..", "ü/ß", " "])
def test_plain_names_are_taken(name: str):
    assert explain_name(name) is None


def test_records_are_of_what_was_written(tmp_path: Path):
    files = Files(tmp_path)
    # Larger than a chunk, and buffers of other formats and lengths.
    pieces = [b"", bytes(range(256)) * 20_000, bytearray(b"xy"), memoryview(b"abc")[1:]]
    with files.create("deep/er/file") as file:
        sizes = [file.write(piece) for piece in (*pieces, array("d", [1.5, 2.5]))]
    content = b"".join(pieces) + array("d", [1.5, 2.5]).tobytes()
    assert sizes == [0, 5_120_000, 2, 2, 16]
    assert (tmp_path / "deep/er/file").read_bytes() == content
    digest = hashlib.sha256(content).hexdigest()
    assert files.records == [FileRecord("deep/er/file", len(content), digest)]
    assert hash_file(tmp_path / "deep/er/file") == digest


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    files = Files(tmp_path)
    _fill(files, "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"
    assert files.records[0].sha256 == hashlib.sha256(b"0123456789").hexdigest()


def test_file_whose_block_fails_is_not_recorded(tmp_path: Path):
    files = Files(tmp_path)

    def fill() -> None:
        with files.create("a") as file:
            file.write(b"half")
            raise ValueError("the state cannot be read")

    with pytest.raises(ValueError, match="cannot be read"):
        fill()
    assert files.records == []


def test_file_is_never_written_over(tmp_path: Path):
    files = Files(tmp_path)
    _fill(files, "a", b"first")
    with pytest.raises(FileExistsError):
        files.create("a")
    assert (tmp_path / "a").read_bytes() == b"first"


def test_folder_that_is_gone_is_not_made_again(tmp_path: Path):
    """Rank 0 removes it when a save has failed; a rank that comes late must not bring it back."""
    files = Files(tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        files.create("state/a")
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("call", ["write", "fsync", "close"])
def test_errors_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str):
    def fail(descriptor: int, *args: object) -> None:
        raise OSError(28, "No space left on device")

    def fill() -> None:
        with files.create("state/a") as file:
            monkeypatch.setattr(os, call, fail)
            file.write(b"x")

    files = Files(tmp_path)
    with pytest.raises(OSError, match="No space left") as caught:
        fill()
    assert caught.value.filename == str(tmp_path / "state/a")
    assert files.records == []


def test_what_a_library_wrote_is_adopted(tmp_path: Path):
    (tmp_path / "hf/deep").mkdir(parents=True)
    (tmp_path / "hf/config.json").write_bytes(b"{}")
    (tmp_path / "hf/deep/vocabulary").write_bytes(b"abc")
    (tmp_path / "one").write_bytes(b"")
    files = Files(tmp_path)
    files.adopt("hf")
    files.adopt("one")
    assert [(entry.path, entry.size) for entry in files.records] == [
        ("hf/config.json", 2),
        ("hf/deep/vocabulary", 3),
        ("one", 0),
    ]
    assert files.records[0].sha256 == hashlib.sha256(b"{}").hexdigest()


def test_links_and_pipes_are_not_adopted(tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"s")
    folder = tmp_path / "folder"
    (folder / "hf").mkdir(parents=True)
    (folder / "hf/link").symlink_to(outside / "secret")
    (folder / "away").symlink_to(outside)
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    files = Files(folder)
    for name in ("hf", "hf/link", "away", "dangling", "pipe"):
        with pytest.raises(CheckpointError, match="not a regular file"):
            files.adopt(name)
    for call in (files.create, files.adopt):
        with pytest.raises(CheckpointError, match="leaves the checkpoint through a link"):
            call("away/secret")
    assert files.records == []


def test_every_folder_of_the_files_is_synced_inner_ones_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    files = Files(tmp_path)
    for name in ("a/b/c", "a/d", "e"):
        _fill(files, name, b"x")
    synced = []
    monkeypatch.setattr("bigft.checkpoint.files.sync", synced.append)
    files.sync_folders()
    assert synced == [tmp_path / "a/b", tmp_path / "a", tmp_path]


def test_file_system_that_cannot_sync_folders_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(descriptor: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    sync(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        sync(tmp_path / "file")

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from bigft.checkpoint.safetensors_out import (
    Entry,
    create_files,
    plan_files,
)
from bigft.errors import CheckpointError
from bigft.files.safetensors_header import read_header

ENTRIES = [
    Entry("flag", "bool", (3,)),
    Entry("a", "float32", (5, 2)),
    Entry("half", "bfloat16", (7,)),
    Entry("b", "float32", (1,)),
    Entry("count", "int64", ()),
    Entry("empty", "float32", (0, 4)),
]


def test_small_model_is_one_file_without_index(tmp_path: Path) -> None:
    files = plan_files(ENTRIES, 10**9)
    create_files(tmp_path, files)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as opened:
        assert opened.metadata() == {"format": "pt"}
        found = {name: list(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    assert found == {entry.name: list(entry.shape) for entry in ENTRIES}


def test_every_tensor_is_aligned_to_its_element(tmp_path: Path) -> None:
    (file,) = plan_files(ENTRIES, 10**9)
    sizes = {"bool": 1, "bfloat16": 2, "float32": 4, "int64": 8}
    assert len(file.header) % 8 == 0
    assert all(file.offsets[entry.name] % sizes[entry.dtype] == 0 for entry in ENTRIES)


def test_large_model_is_split_and_indexed_as_hugging_face_does(tmp_path: Path) -> None:
    entries = [Entry(f"w{number}", "float32", (10,)) for number in range(5)]
    entries.insert(2, Entry("huge", "float32", (1000,)))
    files = plan_files(entries, 90)
    create_files(tmp_path, files)
    assert [[entry.name for entry in file.entries] for file in files] == [
        ["w0", "w1"],
        ["huge"],
        ["w2", "w3"],
        ["w4"],
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * (50 + 1000)
    assert index["weight_map"]["huge"] == "model-00002-of-00004.safetensors"
    assert {path.name for path in tmp_path.glob("*.safetensors")} == set(
        index["weight_map"].values()
    )


def test_split_equals_the_one_of_huggingface_hub() -> None:
    from huggingface_hub import split_torch_state_dict_into_shards
    from torch import empty

    sizes = [10, 20, 5, 30, 8, 25, 1, 12]
    state = {f"w{number}": empty(size) for number, size in enumerate(sizes)}
    expected = split_torch_state_dict_into_shards(state, max_shard_size=160)
    entries = [Entry(name, "float32", tuple(value.shape)) for name, value in state.items()]
    files = plan_files(entries, 160)
    assert {file.name: [entry.name for entry in file.entries] for file in files} == (
        expected.filename_to_tensors
    )


def test_header_reads_back(tmp_path: Path) -> None:
    files = plan_files(ENTRIES, 10**9)
    create_files(tmp_path, files)
    header = read_header(tmp_path / "model.safetensors")
    assert {name: place.begin for name, place in header.tensors.items()} == files[0].offsets
    assert header.metadata == {"format": "pt"}


@pytest.mark.parametrize("name", ["", "__metadata__", "a\ud800"])
def test_name_that_the_format_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="cannot hold"):
        plan_files([Entry(name, "float32", (1,))], 10**9)


def test_files_have_their_room_on_the_disk_from_the_start(tmp_path: Path) -> None:
    files = plan_files([Entry("w", "float32", (1 << 20,))], 10**9)
    create_files(tmp_path, files)
    status = (tmp_path / "model.safetensors").stat()
    assert status.st_size == files[0].file_bytes
    assert status.st_blocks * 512 >= files[0].file_bytes


def test_file_system_without_preallocation_gets_sparse_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bigft.checkpoint.safetensors_out.ctypes.CDLL", lambda *_, **__: object())
    files = plan_files([Entry("w", "float32", (1 << 20,))], 10**9)
    create_files(tmp_path, files)
    assert (tmp_path / "model.safetensors").stat().st_size == files[0].file_bytes


def test_a_file_gets_a_second_name_or_a_copy(tmp_path, monkeypatch):
    from bigft.checkpoint.parts import link

    (tmp_path / "one").write_bytes(b"numbers")
    link(tmp_path / "one", tmp_path / "linked")
    assert (tmp_path / "linked").samefile(tmp_path / "one")

    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    link(tmp_path / "one", tmp_path / "copied")
    assert (tmp_path / "copied").read_bytes() == b"numbers"
    assert not (tmp_path / "copied").samefile(tmp_path / "one")

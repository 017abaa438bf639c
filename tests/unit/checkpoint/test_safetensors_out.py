import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from bigft.checkpoint.safetensors_out import (
    Entry,
    create_files,
    plan_files,
    read_header,
    write_chunk,
)
from bigft.errors import CheckpointError

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


def test_values_come_back_whatever_the_order_of_the_chunks(tmp_path: Path) -> None:
    entries = [Entry("x", "float32", (100,)), Entry("y", "float32", (3,))]
    (file,) = plan_files(entries, 10**9)
    create_files(tmp_path, [file])
    values = {"x": np.arange(100, dtype=np.float32), "y": np.ones(3, np.float32)}
    with (tmp_path / file.name).open("r+b") as stream:
        for name, start, end in (("y", 0, 3), ("x", 60, 100), ("x", 0, 60)):
            chunk = memoryview(values[name][start:end].view(np.uint8))
            write_chunk(stream.fileno(), chunk, file.offsets[name] + 4 * start)
    with safe_open(tmp_path / file.name, framework="numpy") as opened:
        assert all(np.array_equal(opened.get_tensor(name), values[name]) for name in values)


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
    header, begin = read_header(tmp_path / "model.safetensors")
    offsets = {name: begin + facts["data_offsets"][0] for name, facts in header.items()}
    assert offsets == files[0].offsets


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"\x04" + b"\0" * 9]
)
def test_damaged_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="header is damaged"):
        read_header(tmp_path / "a.safetensors")

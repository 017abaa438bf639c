"""A rank's file, read range by range."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bigft.checkpoint.state.file import StateFile
from bigft.errors import CheckpointError


@pytest.fixture
def small(tmp_path) -> Path:
    tensors = {
        "upper/a": torch.arange(1000, dtype=torch.bfloat16),
        "rest/a": torch.arange(-500, 500, dtype=torch.int8),
        "scale1/a": torch.arange(4, dtype=torch.float32),
    }
    save_file(tensors, tmp_path / "rank.safetensors", {"format": "x"})
    return tmp_path / "rank.safetensors"


def test_ranges_are_those_of_the_tensor(small):
    with StateFile(small) as file:
        assert sorted(file.keys()) == ["rest/a", "scale1/a", "upper/a"]
        assert file.metadata["format"] == "x"
        assert (file.numel("rest/a"), file.dtype("rest/a")) == (1000, torch.int8)
        assert file.has("upper/a")
        assert not file.has("upper/b")
        whole = torch.arange(1000, dtype=torch.bfloat16)
        assert torch.equal(file.read("upper/a"), whole)
        assert torch.equal(file.read("upper/a", 17, 600), whole[17:600])
        assert file.read("upper/a", 5, 5).numel() == 0


def test_a_file_larger_than_the_memory_is_read(tmp_path):
    """Mapped as the safetensors library maps it, the kernel would refuse it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    numel = 2 * memory
    header = {"a": {"dtype": "U8", "shape": [numel], "data_offsets": [0, numel]}}
    text = json.dumps(header).encode()
    path = tmp_path / "large.safetensors"
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + numel)
        stream.seek(-3, os.SEEK_END)
        stream.write(b"\x01\x02\x03")
    with StateFile(path) as file:
        assert file.read("a", numel - 4).tolist() == [0, 1, 2, 3]


def test_a_file_that_is_cut_off_while_it_is_open_is_named(small):
    with StateFile(small) as file:
        os.truncate(small, 400)
        with pytest.raises(CheckpointError, match=r"rank\.safetensors: has been cut off"):
            file.read("upper/a")

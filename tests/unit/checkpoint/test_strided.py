"""Tensors whose elements do not lie in C order."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bigft.checkpoint.strided import read_strided
from bigft.errors import CheckpointError
from bigft.files.torch_file import read_torch_file

BASE = torch.arange(7 * 600 * 50, dtype=torch.float32).reshape(7, 600, 50)


@pytest.mark.parametrize(
    "tensor",
    [
        BASE.transpose(0, 2),
        BASE.permute(1, 0, 2),
        BASE[::2, 5:590:7].transpose(1, 2),
        BASE[3, :, 7],
        BASE[0, 0].expand(300, 50),
        BASE[1].to(torch.int64).t(),
        torch.tensor(3.0).expand(1000),
    ],
)
def test_every_range_equals_torchs(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save(tensor, tmp_path / "a.pt")
    ref = read_torch_file(tmp_path / "a.pt")
    assert not ref.is_contiguous
    flat = tensor.reshape(-1).numpy()
    for start, stop in ((0, len(flat)), (len(flat) // 3, len(flat) // 2), (len(flat) - 1, None)):
        wanted = flat[start:stop]
        assert np.array_equal(read_strided(ref, start, len(wanted)), wanted)


def test_file_that_shrank_is_named(tmp_path: Path) -> None:
    torch.save(BASE[0].t(), tmp_path / "a.pt")
    ref = read_torch_file(tmp_path / "a.pt")
    with (tmp_path / "a.pt").open("r+b") as file:
        file.truncate(ref.offset + 1000)
    with pytest.raises(CheckpointError, match=r"a\.pt: ends at byte"):
        read_strided(ref, 0, ref.numel)


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    torch.save(torch.ones(6000, 8000).t(), tmp_path / "a.pt")
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from bigft.checkpoint.strided import read_strided\n"
        "from bigft.files.torch_file import read_torch_file\n"
        "ref = read_torch_file(Path(sys.argv[1]))\n"
        "read_strided(ref, 5, 10)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert (read_strided(ref, 20_000_000, 1_000_000) == 1).all()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.pt")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    # The tensor has 192 MB, the part that is asked for 4 MB; a KiB is the unit.
    assert int(done.stdout) < 40 << 10

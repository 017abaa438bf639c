"""Checkpoints that stock DeepSpeed saves with the optimizer offloaded, against the engine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bigft.checkpoint.consolidate import consolidate

pytestmark = pytest.mark.distributed

SCRIPT = Path(__file__).parents[1] / "support" / "make_nvme_checkpoints.py"
NVME = ["nvme_bf16", "nvme_params_bf16", "nvme_fp32"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoints")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc_per_node", "2", str(SCRIPT), str(out)],
        env={**os.environ, "DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "2", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.mark.parametrize("name", [*NVME, "cpu_bf16"])
def test_masters_and_weights_equal_the_engines_bit_for_bit(
    checkpoints: Path, tmp_path: Path, name: str
) -> None:
    saved = torch.load(checkpoints / name / "weights.pt", weights_only=True)
    for dtype, expected in (
        ("float32", {**saved["weights"], **saved["masters"]}),
        ("auto", saved["weights"]),
    ):
        result = consolidate(
            checkpoints / name,
            tmp_path / dtype,
            dtype=dtype,
            assets=checkpoints / name / "hf",
            verify=True,
        )
        written = load_file(result.path / "model.safetensors")
        assert written.keys() == expected.keys()
        for key, value in written.items():
            assert torch.equal(value, expected[key].to(value.dtype)), key


def test_the_stock_tool_refuses_nvme_and_agrees_elsewhere(
    checkpoints: Path, tmp_path: Path
) -> None:
    """The control: if DeepSpeed learns to do it, this page of the documentation is wrong."""
    for name in (NVME[0], "cpu_bf16"):
        folder = checkpoints / name
        done = subprocess.run(
            [sys.executable, str(folder / "zero_to_fp32.py"), str(folder), str(tmp_path / name)],
            env={**os.environ, "DS_ACCELERATOR": "cpu"},
            capture_output=True,
            text=True,
        )
        if name in NVME:
            assert done.returncode != 0
            assert "something is wrong" in done.stderr
            continue
        assert done.returncode == 0, done.stderr[-2000:]
        stock = torch.load(tmp_path / name / "pytorch_model.bin", weights_only=True)
        result = consolidate(folder, tmp_path / "ours", dtype="float32")
        for key, value in load_file(result.path / "model.safetensors").items():
            assert torch.equal(value, stock[key].float()), key

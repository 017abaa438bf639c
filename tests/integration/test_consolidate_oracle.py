"""Consolidation of real DeepSpeed checkpoints, judged by DeepSpeed's and transformers' own code."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bigft.checkpoint.consolidate import consolidate

pytestmark = pytest.mark.distributed

SCRIPT = Path(__file__).parents[1] / "support" / "make_zero_checkpoints.py"
PLAIN = [
    f"stage{stage}_{precision}_{tie}"
    for stage in (1, 2, 3)
    for precision in ("bf16", "fp32")
    for tie in ("tied", "untied")
]
EXTRAS = [f"stage{stage}_bf16_untied_extras" for stage in (1, 2, 3)]
FROZEN = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight")
BF16_OPTIMIZER = "stage1_bf16_tied_fp32_accumulation"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoints")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc_per_node", "2", str(SCRIPT), str(out)]
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "LOCAL_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=540, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def read_with_deepspeed(folder: Path) -> dict[str, torch.Tensor]:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    state: dict[str, torch.Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(folder))
    return {name: tensor.detach() for name, tensor in state.items()}


@pytest.mark.parametrize("name", [*PLAIN, *EXTRAS])
def test_float32_export_equals_zero_to_fp32_bit_for_bit(
    checkpoints: Path, tmp_path: Path, name: str
) -> None:
    result = consolidate(checkpoints / name, tmp_path / "out", dtype="float32", threads=2)
    ours = load_file(result.path / "model.safetensors")
    expected = read_with_deepspeed(checkpoints / name)
    assert result.parameters == sum(ours[key].numel() for key in ours if not is_buffer(key))
    dropped = set(expected) - set(ours)
    assert dropped == ({"lm_head.weight"} if name.endswith("_tied") else set())
    # Frozen parameters of stage 1, which DeepSpeed's converter does not know of.
    for key in set(ours) - set(expected):
        assert (name, key) in [("stage1_bf16_untied_extras", frozen) for frozen in FROZEN]
        del ours[key]
    for key, value in ours.items():
        want = expected[key].float() if expected[key].is_floating_point() else expected[key]
        assert value.dtype == want.dtype, key
        assert value.shape == want.shape, key
        assert value.numpy().tobytes() == want.contiguous().numpy().tobytes(), key


def is_buffer(name: str) -> bool:
    return name in ("seen_tokens", "offsets", "scratch")


@pytest.mark.parametrize("name", EXTRAS)
def test_frozen_parameters_are_written_whatever_the_stage(
    checkpoints: Path, tmp_path: Path, name: str
) -> None:
    """`zero_to_fp32` leaves out those of stage 1: here the module's own names are the judge."""
    consolidate(checkpoints / name, tmp_path / "out", threads=2)
    ours = load_file(tmp_path / "out" / "model.safetensors")
    file = next((checkpoints / name).glob("final/*mp_rank_00_model_states.pt"))
    module = torch.load(file, weights_only=False)["module"]
    assert set(ours) == set(module)
    if "stage3" not in name:  # There the file holds a slice.
        frozen = "model.layers.0.mlp.up_proj.weight"
        assert torch.equal(ours[frozen], module[frozen])


@pytest.mark.parametrize("name", EXTRAS)
def test_persistent_buffers_are_written_and_others_are_not(
    checkpoints: Path, tmp_path: Path, name: str
) -> None:
    result = consolidate(checkpoints / name, tmp_path / "out", threads=2)
    ours = load_file(result.path / "model.safetensors")
    assert torch.equal(ours["seen_tokens"], torch.tensor([3, 5, 2**40]))
    assert ours["offsets"].dtype == torch.bfloat16
    assert "scratch" not in ours


@pytest.mark.parametrize("name", [*PLAIN, BF16_OPTIMIZER, "stage0_fp32_tied"])
def test_plain_transformers_gives_the_logits_of_the_engine(
    checkpoints: Path, tmp_path: Path, name: str
) -> None:
    model, problems = load_with_transformers(checkpoints / name, tmp_path / "out")
    assert not any(problems.values()), problems
    saved = torch.load(checkpoints / name / "logits.pt", weights_only=True)
    wanted = torch.bfloat16 if "bf16" in name else torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {wanted}
    with torch.no_grad():
        logits = model(input_ids=saved["ids"]).logits
    assert torch.equal(logits, saved["logits"])


def load_with_transformers(folder: Path, out: Path) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    # Small files, so that the index is used too.
    consolidate(folder, out, assets=folder / "hf", max_shard_bytes=20_000, threads=2)
    assert (out / "model.safetensors.index.json").is_file()
    model, problems = AutoModelForCausalLM.from_pretrained(
        out, dtype="auto", output_loading_info=True
    )
    return model.eval(), {key: list(value) for key, value in problems.items()}


def test_export_imports_neither_torch_nor_deepspeed(checkpoints: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from bigft.cli import main\n"
        "main(['consolidate', sys.argv[1], '--output_dir', sys.argv[2], '--json'])\n"
        "print(sorted({'torch', 'deepspeed', 'transformers'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", code, str(checkpoints / PLAIN[0]), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == ["[]"]


def test_missing_shard_of_a_rank_is_named(checkpoints: Path, tmp_path: Path) -> None:
    from bigft.errors import CheckpointError

    folder = tmp_path / "copy"
    folder.mkdir()
    for path in (checkpoints / "stage3_bf16_untied" / "final").iterdir():
        if "_rank_1_" not in path.name or "model_states" in path.name:
            (folder / path.name).hardlink_to(path)
    with pytest.raises(CheckpointError, match=r"of rank 1 \(written by 2 ranks\)"):
        consolidate(folder, tmp_path / "out")

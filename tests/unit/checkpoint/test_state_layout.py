"""bigft's own state format, read for consolidation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from state_files import Weights, write_state

from bigft.checkpoint.cast import CARRIERS
from bigft.checkpoint.consolidate import consolidate
from bigft.checkpoint.layout import SourceTensor
from bigft.checkpoint.manifest import write_manifest
from bigft.checkpoint.state_layout import read_state_layout
from bigft.errors import CheckpointError


def read_values(tensor: SourceTensor) -> np.ndarray:
    parts = [
        np.fromfile(one.path, CARRIERS[one.dtype], one.numel, offset=one.offset)
        for one in tensor.slices
    ]
    flat = np.concatenate(parts) if parts else np.empty(0)
    return flat.reshape(tensor.shape)


@pytest.fixture
def more() -> dict[str, Weights]:
    torch.manual_seed(5)
    return {
        "frozen": {"up.weight": torch.randn(9, 5).bfloat16(), "scale": torch.randn(())},
        "buffers": {"ids": torch.tensor([[2**40, 1]]), "mask": torch.tensor([True, False])},
    }


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("moments", ["adam", "8bit"])
def test_fragments_at_any_place_are_joined(
    tmp_path: Path,
    weights: Weights,
    more: dict[str, Weights],
    world_size: int,
    moments: str,
) -> None:
    state = write_state(tmp_path, weights, world_size=world_size, moments=moments, **more)
    layout = read_state_layout(state)
    found = {tensor.name: tensor for tensor in layout.tensors}
    assert set(found) == {*weights, *more["frozen"], *more["buffers"]}
    for name, value in weights.items():
        assert np.array_equal(read_values(found[name]), value.numpy())
    for name, value in more["frozen"].items():
        assert found[name].dtype == str(value.dtype)[6:]
        wanted = value.view(torch.int16) if value.dtype == torch.bfloat16 else value
        assert np.array_equal(read_values(found[name]).view(wanted.numpy().dtype), wanted.numpy())
    assert [name for name, tensor in found.items() if tensor.is_buffer] == [*more["buffers"]]
    assert (layout.world_size, layout.step, layout.training_dtype) == (world_size, 7, "bfloat16")


def commit(tmp_path: Path, weights: Weights, **options: Any) -> Path:
    step_dir = tmp_path / "run" / "checkpoints" / "step_00000007"
    write_state(step_dir, weights, **options)
    (step_dir / "hf").mkdir()
    (step_dir / "hf" / "config.json").write_text('{"model_type": "llama"}')
    write_manifest(step_dir, {"step": 7, "world_size": 2, "zero_stage": 3})
    return step_dir


def test_run_of_bigft_is_exported_with_ties_and_frozen_weights(
    tmp_path: Path, weights: Weights, more: dict[str, Weights]
) -> None:
    commit(tmp_path, weights, shared={"head": "embed"}, **more)
    result = consolidate(tmp_path / "run", tmp_path / "out", dtype="float32", verify=True)
    written = load_file(result.path / "model.safetensors")
    for name, value in weights.items():
        assert torch.equal(written[name], value)
    for name, value in more["frozen"].items():
        assert torch.equal(written[name], value.float())
    for name, value in more["buffers"].items():
        assert torch.equal(written[name], value)
    assert "head" not in written
    card = (result.path / "README.md").read_text()
    assert "| Optimizer steps | 7 |" in card
    assert "| ZeRO stage | 3 |" in card


def test_weights_without_masters_are_taken_as_they_are(tmp_path: Path, weights: Weights) -> None:
    commit(tmp_path, weights, has_masters=False)
    consolidate(tmp_path / "run", tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[name], value.bfloat16()) for name, value in weights.items())


def test_changed_byte_of_a_committed_checkpoint_is_noticed(
    tmp_path: Path, weights: Weights
) -> None:
    step_dir = commit(tmp_path, weights)
    path = step_dir / "state" / "rank_00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="rank_00001"):
        consolidate(step_dir, tmp_path / "out")


def test_missing_rank_is_named(tmp_path: Path, weights: Weights) -> None:
    state = write_state(tmp_path, weights, world_size=3)
    (state / "rank_00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no file of rank 1 \(written by 3 ranks\)"):
        read_state_layout(state)


def test_rank_of_another_run_is_noticed(tmp_path: Path, weights: Weights) -> None:
    state = write_state(tmp_path / "a", weights, world_size=2)
    other = write_state(tmp_path / "b", weights, world_size=3)
    (other / "rank_00002.safetensors").rename(state / "rank_00002.safetensors")
    with pytest.raises(CheckpointError, match="has a file of rank 2, but was written by 2 ranks"):
        read_state_layout(state)


def change(path: Path, edit: Any) -> None:
    """Rewrite one rank's file with its tensors and its metadata changed."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        facts = dict(opened.metadata())
    tensors, starts = load_file(path), json.loads(facts["starts"])
    edit(tensors, starts, facts)
    facts["starts"] = json.dumps(starts)
    save_file(tensors, path, facts)


def drop(tensors: Any, starts: Any, facts: Any) -> None:
    del tensors["master/embed"]


def shift(tensors: Any, starts: Any, facts: Any) -> None:
    starts["master/embed"] += 1


def shorten(tensors: Any, starts: Any, facts: Any) -> None:
    tensors["master/embed"] = tensors["master/embed"][:-1].clone()


def lengthen(tensors: Any, starts: Any, facts: Any) -> None:
    tensors["master/embed"] = torch.cat([tensors["master/embed"], torch.zeros(1)])


def recast(tensors: Any, starts: Any, facts: Any) -> None:
    tensors["master/embed"] = tensors["master/embed"].double()


def unknown(tensors: Any, starts: Any, facts: Any) -> None:
    tensors["master/other"], starts["master/other"] = torch.zeros(1), 0


def second(tensors: Any, starts: Any, facts: Any) -> None:
    tensors["weight/embed"], starts["weight/embed"] = tensors["master/embed"].clone(), 0


def square(tensors: Any, starts: Any, facts: Any) -> None:
    tensors["master/embed"] = tensors["master/embed"].reshape(1, -1)


def negative(tensors: Any, starts: Any, facts: Any) -> None:
    starts["master/embed"] = -1


def unplaced(tensors: Any, starts: Any, facts: Any) -> None:
    del starts["master/embed"]


def foreign(tensors: Any, starts: Any, facts: Any) -> None:
    facts["format"] = "pt"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (drop, "in no rank's file|ranks' files hold"),
        (shift, "in no rank's file|twice|hold 92"),
        (shorten, "in no rank's file|hold 90"),
        (lengthen, "twice|hold 92"),
        (recast, "is float64 instead of bfloat16 or float32"),
        (unknown, "master/other is not in index.json"),
        (second, "is there as master and as weight"),
        (square, "no fragment of a flat tensor"),
        (negative, "no fragment of a flat tensor"),
        (unplaced, "no fragment of a flat tensor"),
        (foreign, "no state that this bigft reads"),
    ],
)
def test_fragments_that_do_not_fit_are_refused(
    tmp_path: Path, weights: Weights, edit: Any, words: str
) -> None:
    state = write_state(tmp_path, weights)
    change(state / "rank_00000.safetensors", edit)
    with pytest.raises(CheckpointError, match=words):
        read_state_layout(state)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format", 2, "this bigft reads 1"),
        ("world_size", "many", "damaged"),
        ("world_size", 0, "by 0 ranks"),
        ("parameters", {"embed": {"shape": [-1], "dtype": "float32"}}, "negative"),
        ("parameters", {"embed": {"shape": [1], "dtype": "int3"}}, "int3"),
        ("parameters", [], "damaged"),
        ("shared", {"head": "gone"}, "cannot be another name"),
        ("shared", {"one": "embed"}, "cannot be another name"),
        ("engine", None, "damaged"),
    ],
)
def test_damaged_index_is_refused(
    tmp_path: Path, weights: Weights, key: str, value: Any, words: str
) -> None:
    state = write_state(tmp_path, weights)
    index = json.loads((state / "index.json").read_text())
    (state / "index.json").write_text(json.dumps({**index, key: value}))
    with pytest.raises(CheckpointError, match=words):
        read_state_layout(state)


def test_any_text_as_index_is_refused(tmp_path: Path) -> None:
    for text in (b"", b"[]", b"\xff", b"[" * 100_000, b"{}", b"null"):
        (tmp_path / "index.json").write_bytes(text)
        with pytest.raises(CheckpointError, match=r"index\.json: damaged"):
            read_state_layout(tmp_path)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=6),
    world_size=st.integers(1, 5),
    seed=st.integers(0, 2**16),
)
def test_any_division_gives_the_same_weights(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[list[int]],
    world_size: int,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("state")
    weights = {f"w{n}": torch.randn(shape) for n, shape in enumerate(shapes)}
    layout = read_state_layout(write_state(folder, weights, world_size=world_size, seed=seed))
    for tensor in layout.tensors:
        assert np.array_equal(read_values(tensor), weights[tensor.name].numpy())

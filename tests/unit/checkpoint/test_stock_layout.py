from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from zero_files import Weights, cut_every_parameter, write_zero_checkpoint

from bigft.checkpoint.layout import Layout, SourceTensor
from bigft.checkpoint.stock_layout import read_stock_layout
from bigft.errors import CheckpointError


def read_tensor(tensor: SourceTensor) -> np.ndarray:
    pieces = [
        np.fromfile(one.path, np.float32, one.numel, offset=one.offset) for one in tensor.slices
    ]
    joined = np.concatenate(pieces) if pieces else np.empty(0, np.float32)
    return joined.reshape(tensor.shape)


def read_all(layout: Layout) -> dict[str, np.ndarray]:
    return {tensor.name: read_tensor(tensor) for tensor in layout.tensors}


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("num_groups", [1, 3])
def test_slices_give_the_weights(
    tmp_path: Path,
    write_checkpoint: Callable[..., Path],
    weights: Weights,
    stage: int,
    world_size: int,
    num_groups: int,
) -> None:
    write_checkpoint(tmp_path, weights, stage=stage, world_size=world_size, num_groups=num_groups)
    layout = read_stock_layout(tmp_path)
    assert (layout.zero_stage, layout.world_size, layout.step) == (stage, world_size, 7)
    assert [tensor.name for tensor in layout.tensors] == list(weights)
    for name, values in read_all(layout).items():
        assert np.array_equal(values, weights[name].numpy()), name


def test_alignment_gaps_of_stage_2_are_skipped(
    tmp_path: Path, write_checkpoint: Callable[..., Path]
) -> None:
    garbage = torch.full((3,), float("nan"))
    written = {"a": torch.randn(5), "gap": garbage, "b": torch.randn(4)}
    shapes = [{"a": written["a"].shape, "b": written["b"].shape}]
    write_checkpoint(
        tmp_path,
        written,
        stage=2,
        model={"param_shapes": shapes},
        optim={"param_alignment_paddings": [[3, 0]]},
    )
    values = read_all(read_stock_layout(tmp_path))
    assert set(values) == {"a", "b"}
    assert np.array_equal(values["b"], written["b"].numpy())


def test_stage_1_without_label_is_read(
    tmp_path: Path, write_checkpoint: Callable[..., Path], weights: Weights
) -> None:
    write_checkpoint(tmp_path, weights, stage=1, optim={"zero_stage": None})
    assert read_stock_layout(tmp_path).zero_stage == 1


def test_slices_of_one_parameter_in_several_sub_groups_are_joined(
    tmp_path: Path, write_checkpoint: Callable[..., Path]
) -> None:
    write_checkpoint(tmp_path, {"a": torch.arange(6.0)}, world_size=2)
    for rank in (0, 1):
        path = tmp_path / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        state = torch.load(path, weights_only=False)
        whole = state["optimizer_state_dict"]["fp32_flat_groups"][0]
        state["optimizer_state_dict"]["fp32_flat_groups"] = [whole[:1].clone(), whole[1:].clone()]
        torch.save(state, path)
    assert np.array_equal(read_all(read_stock_layout(tmp_path))["a"], np.arange(6.0))


def test_ties_follow_shared_params(
    tmp_path: Path, write_checkpoint: Callable[..., Path], weights: Weights
) -> None:
    ties = {"head": "embed", "one": "s", "elsewhere": "unknown"}
    write_checkpoint(tmp_path, weights, model={"shared_params": ties})
    # `one` has values of its own: equal addresses of empty tensors made it look tied.
    assert read_stock_layout(tmp_path).aliases == {"head": "embed"}


def test_weights_of_stage_0_come_from_the_model_file(tmp_path: Path) -> None:
    embed = torch.randn(3, 2)
    module = {"embed": embed, "head": embed, "w": torch.randn(4), "count": torch.tensor([1, 2])}
    state = {"module": module, "buffer_names": ["count"], "param_shapes": None}
    torch.save(state, tmp_path / "mp_rank_00_model_states.pt")
    layout = read_stock_layout(tmp_path)
    assert layout.aliases == {"head": "embed"}
    assert [(one.name, one.is_buffer) for one in layout.tensors] == [
        ("embed", False),
        ("w", False),
        ("count", True),
    ]
    assert np.array_equal(read_tensor(layout.tensors[0]), embed.numpy())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"bf16": {"enabled": True}}, "bfloat16"),
        ({"bfloat16": {"enabled": True}}, "bfloat16"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": False}}, "float16"),
        ({"bf16": {"enabled": False}}, "float32"),
        ({}, "float32"),
        ("ds_configs/zero3.json", "bfloat16"),
    ],
)
def test_training_dtype_is_the_one_of_the_engine(
    tmp_path: Path,
    write_checkpoint: Callable[..., Path],
    weights: Weights,
    config: object,
    expected: str,
) -> None:
    write_checkpoint(tmp_path, weights, model={"ds_config": config})
    assert read_stock_layout(tmp_path).training_dtype == expected


def test_missing_rank_is_named(
    tmp_path: Path, write_checkpoint: Callable[..., Path], weights: Weights
) -> None:
    write_checkpoint(tmp_path, weights, world_size=4)
    (tmp_path / "bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(CheckpointError, match=r"file of rank 2 \(written by 4 ranks\)"):
        read_stock_layout(tmp_path)


def test_files_of_another_world_size_are_named(
    tmp_path: Path, write_checkpoint: Callable[..., Path], weights: Weights
) -> None:
    write_checkpoint(tmp_path, weights, world_size=4)
    write_checkpoint(tmp_path, weights, world_size=2)
    with pytest.raises(CheckpointError) as caught:
        read_stock_layout(tmp_path)
    for rank in (2, 3):
        assert f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt: written by 4" in str(caught.value)


def test_two_files_of_one_rank_are_refused(
    tmp_path: Path, write_checkpoint: Callable[..., Path], weights: Weights
) -> None:
    write_checkpoint(tmp_path, weights)
    old = tmp_path / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    (tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(old.read_bytes())
    with pytest.raises(CheckpointError, match="rank 0 has another file"):
        read_stock_layout(tmp_path)


def swap_out(folder: Path, weights: Weights, label: object = "0_4") -> None:
    """Move the fp32 group of each rank into a swap file, as DeepSpeed saves NVMe offload."""
    groups = cut_every_parameter(list(weights.values()), 2)
    empty = torch.empty(0)
    empty.ds_id = label  # type: ignore[attr-defined]
    write_zero_checkpoint(folder, weights, optim={"fp32_flat_groups": [empty]})
    for rank, group in enumerate(groups):
        swap = folder / "offloaded_tensors" / f"rank{rank:02d}"
        swap.mkdir(parents=True)
        padded = torch.nn.functional.pad(group, (0, -group.numel() % 1024), value=float("nan"))
        padded.numpy().tofile(swap / "0_4.tensor.swp")
        (swap / "exp_avg-0_4.tensor.swp").write_bytes(b"")
        (swap / "7_9.tensor.swp").write_bytes(b"of an earlier run")


def test_groups_in_swap_files_are_found(tmp_path: Path, weights: Weights) -> None:
    swap_out(tmp_path, weights)
    found = read_all(read_stock_layout(tmp_path))
    assert found.keys() == weights.keys()
    assert all(np.array_equal(found[name], value.numpy()) for name, value in weights.items())


@pytest.mark.parametrize("label", ["", "0_4/../../../x", "../0_4", "exp_avg-0_4", 7, "1_2"])
def test_label_that_names_no_swap_file_is_refused(
    tmp_path: Path, weights: Weights, label: object
) -> None:
    swap_out(tmp_path, weights, label)
    with pytest.raises(CheckpointError, match="do not name their swap files|1_2.*missing"):
        read_stock_layout(tmp_path)


def test_swap_file_that_is_missing_cut_off_or_elsewhere_is_named(
    tmp_path: Path, weights: Weights
) -> None:
    swap_out(tmp_path, weights)
    swap = tmp_path / "offloaded_tensors" / "rank01" / "0_4.tensor.swp"
    whole = swap.read_bytes()
    swap.write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match=r"rank01/0_4.*has 100 bytes, its group needs"):
        read_stock_layout(tmp_path)
    elsewhere = tmp_path.parent / f"{tmp_path.name}.elsewhere"
    elsewhere.write_bytes(whole)
    swap.unlink()
    with pytest.raises(CheckpointError, match=r"rank01/0_4.*missing"):
        read_stock_layout(tmp_path)
    swap.symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match=r"rank01/0_4.*missing"):
        read_stock_layout(tmp_path)


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("change", [-9, 9])
def test_lengths_that_do_not_add_up_are_refused(
    tmp_path: Path,
    write_checkpoint: Callable[..., Path],
    weights: Weights,
    stage: int,
    change: int,
) -> None:
    shapes = [{name: tuple(value.shape) for name, value in weights.items()}]
    shapes[0]["one"] = (10 + change,)
    written = {**weights, "one": torch.zeros(10)}
    write_checkpoint(tmp_path, written, stage=stage, model={"param_shapes": shapes})
    with pytest.raises(CheckpointError, match="files of different runs are mixed"):
        read_stock_layout(tmp_path)


def test_frozen_parameters_are_joined_from_all_ranks(
    tmp_path: Path, write_checkpoint: Callable[..., Path], weights: Weights
) -> None:
    frozen = torch.arange(5.0)
    write_checkpoint(tmp_path, weights)
    for rank, fragment in enumerate((frozen[:3], torch.tensor([3.0, 4.0, float("nan")]))):
        path = tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"
        state = torch.load(path, weights_only=False)
        state["frozen_param_shapes"] = {"frozen": torch.Size([5])}
        state["frozen_param_fragments"] = {"frozen": fragment.clone()}
        torch.save(state, path)
    assert np.array_equal(read_all(read_stock_layout(tmp_path))["frozen"], frozen.numpy())
    path.unlink()
    with pytest.raises(CheckpointError, match=r"model_states\.pt file of rank 1"):
        read_stock_layout(tmp_path)


def test_file_of_a_rank_too_many_is_named(
    tmp_path: Path, write_checkpoint: Callable[..., Path], weights: Weights
) -> None:
    write_checkpoint(tmp_path, weights)
    name = "bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt"
    (tmp_path / name.format(2)).write_bytes((tmp_path / name.format(1)).read_bytes())
    with pytest.raises(CheckpointError, match="2 ranks wrote this checkpoint, so none has the num"):
        read_stock_layout(tmp_path)


def test_frozen_parameters_of_stage_1_are_in_the_module_alone(
    tmp_path: Path, write_checkpoint: Callable[..., Path], weights: Weights
) -> None:
    """DeepSpeed lists them from stage 2 on, and its own converter leaves them out."""
    frozen = torch.arange(5.0)
    module = {"frozen": frozen, "alias": frozen, **{name: torch.empty(0) for name in weights}}
    model = {"module": module, "shared_params": {"alias": "frozen"}}
    layout = read_stock_layout(write_checkpoint(tmp_path, weights, stage=1, model=model))
    assert set(read_all(layout)) == {"frozen", *weights}
    assert np.array_equal(read_all(layout)["frozen"], frozen.numpy())
    assert layout.aliases == {"alias": "frozen"}


def test_frozen_parameters_left_out_on_saving_are_named(
    tmp_path: Path, write_checkpoint: Callable[..., Path], weights: Weights
) -> None:
    model = {"frozen_param_shapes": {"frozen": (5,)}, "frozen_param_fragments": {}}
    write_checkpoint(tmp_path, weights, stage=2, model=model)
    with pytest.raises(CheckpointError, match="parameter frozen; it was saved with exclude_frozen"):
        read_stock_layout(tmp_path)


@pytest.mark.parametrize(
    "name", ["mp_rank_01_model_states.pt", "expp_rank_0_mp_rank_00_optim_states.pt"]
)
def test_other_parallelism_is_refused(
    tmp_path: Path, write_checkpoint: Callable[..., Path], weights: Weights, name: str
) -> None:
    write_checkpoint(tmp_path, weights, stage=2)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match="only data parallel"):
        read_stock_layout(tmp_path)


def test_zero_checkpoint_without_optimizer_files_is_refused(
    tmp_path: Path, write_checkpoint: Callable[..., Path], weights: Weights
) -> None:
    write_checkpoint(tmp_path, weights)
    for path in tmp_path.glob("*_optim_states.pt"):
        path.unlink()
    with pytest.raises(CheckpointError, match="copy them from the hosts"):
        read_stock_layout(tmp_path)

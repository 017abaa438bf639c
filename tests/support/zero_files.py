"""Checkpoints in DeepSpeed's layout, written with plain torch: no engine, any number of ranks."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

Weights = dict[str, torch.Tensor]


def write_zero_checkpoint(
    folder: Path,
    weights: Weights,
    *,
    stage: int = 3,
    world_size: int = 2,
    model: dict[str, Any] | None = None,
    optim: dict[str, Any] | None = None,
    num_groups: int = 1,
) -> Path:
    """Cut `weights` into shards; padding is NaN, so that it is noticed if it gets through."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(weights)
    cuts = [names[start::num_groups] for start in range(num_groups)]
    cut = cut_every_parameter if stage == 3 else cut_whole_group
    groups = [cut([weights[name] for name in group], world_size) for group in cuts]
    shapes = [OrderedDict((name, weights[name].shape) for name in group) for group in cuts]
    state = {
        "module": OrderedDict((name, torch.empty(0)) for name in names),
        "buffer_names": [],
        "param_shapes": shapes,
        "shared_params": {},
        "global_steps": 7,
        "ds_config": {"bf16": {"enabled": True}},
        **(model or {}),
    }
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    for rank in range(world_size):
        if stage == 3 or rank == 0:
            prefix = f"zero_pp_rank_{rank}_" if stage == 3 else ""
            torch.save(state, folder / f"{prefix}mp_rank_00_model_states.pt")
        flat = {key: [group[rank] for group in groups]}
        flat |= {"zero_stage": stage, "partition_count": world_size, **(optim or {})}
        name = f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": flat}, folder / name)
    return folder


def cut_every_parameter(tensors: list[torch.Tensor], world_size: int) -> list[torch.Tensor]:
    """Stage 3: each rank gets `ceil(n / ranks)` elements of each parameter."""
    ranks: list[list[torch.Tensor]] = [[] for _ in range(world_size)]
    for tensor in tensors:
        flat = tensor.float().reshape(-1)
        per_rank = -(-flat.numel() // world_size)
        padded = torch.full((per_rank * world_size,), float("nan"))
        padded[: flat.numel()] = flat
        for rank, piece in enumerate(padded.split(per_rank) if per_rank else []):
            ranks[rank].append(piece)
    return [torch.cat(pieces) for pieces in ranks]


def cut_whole_group(tensors: list[torch.Tensor], world_size: int) -> list[torch.Tensor]:
    """Stages 1 and 2: the group is one vector, padded to twice the number of ranks, cut evenly."""
    flat = torch.cat([tensor.float().reshape(-1) for tensor in tensors])
    per_rank = -(-flat.numel() // (2 * world_size)) * 2
    padded = torch.full((per_rank * world_size,), float("nan"))
    padded[: flat.numel()] = flat
    pieces = [piece.clone() for piece in padded.split(per_rank)]
    pieces[-1] = pieces[-1][: max(flat.numel() - per_rank * (world_size - 1), 0)]
    return pieces

"""Optimizer states that live in NVMe swap files, made visible to saving and loading.

DeepSpeed 0.19.8 writes empty tensors for swapped states and forgets the moments when it resumes
(its `load_checkpoint` copies swap files back before the optimizer has any state). Here the
checkpoint of a swapped run has the same files and the same contents as that of a run in memory,
so consolidation and `zero_to_fp32.py` work on it.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigft.errors import CheckpointError

logger = logging.getLogger(__name__)


def is_swapped(engine: Any) -> bool:
    """Whether this DeepSpeed engine keeps optimizer states in swap files."""
    return bool(engine.zero_nvme_offload_optimizer())


@contextlib.contextmanager
def swapped_state_mapped(engine: Any) -> Iterator[None]:
    """Let every swapped tensor read its swap file inside the block.

    The tensors are mappings of the files: what is written out of them passes through the page
    cache and never stands in memory as a whole.
    """
    if not is_swapped(engine):
        yield
        return
    contexts = [
        (context, info.numel())
        for info in engine.optimizer.optimizer_swapper.swap_params_info.values()
        for context in info.tensors
    ]
    for context, numel in contexts:
        context.compute_tensor.data = _map_file(Path(context.swap_path), numel)
    # Without this DeepSpeed also copies every swap file into the checkpoint.
    engine.zero_nvme_offload_optimizer = lambda: False
    try:
        yield
    finally:
        del engine.zero_nvme_offload_optimizer
        for context, _ in contexts:
            context.release_memory()


def _map_file(path: Path, numel: int) -> Tensor:
    needed = 4 * numel
    size = path.stat().st_size if path.is_file() else 0
    if size < needed:
        raise CheckpointError(
            f"{path}: the swap file has {size:,} bytes, {needed:,} are needed; the NVMe disk is"
            " full or failing, so this state cannot be saved. Older checkpoints are untouched"
        )
    return torch.from_file(str(path), shared=False, size=numel, dtype=torch.float32)


@contextlib.contextmanager
def loading_into_swap(engine: Any, shards: Path) -> Iterator[None]:
    """Make `engine.load_checkpoint` fill the swap files from a checkpoint inside the block."""
    if not is_swapped(engine):
        yield
        return

    def load(*_: Any, **__: Any) -> bool:
        _load_optimizer(engine, _own_shard(engine, shards))
        return True

    engine.zero_nvme_offload_optimizer = lambda: False
    engine._load_zero_checkpoint = load
    try:
        yield
    finally:
        del engine.zero_nvme_offload_optimizer
        del engine._load_zero_checkpoint


def _own_shard(engine: Any, shards: Path) -> Path:
    return Path(engine._get_zero_ckpt_name(str(shards.parent), shards.name))


def _load_optimizer(engine: Any, path: Path) -> None:
    # mmap: one sub-group at a time is read, not the whole shard.
    saved = torch.load(path, mmap=True, weights_only=False, map_location="cpu")
    saved = saved["optimizer_state_dict"]
    outer = engine.optimizer
    outer.loss_scaler = saved["loss_scaler"]
    outer.dynamic_loss_scale = saved["dynamic_loss_scale"]
    outer.overflow = saved["overflow"]
    masters = saved["fp32_flat_groups"]
    if len(masters) != len(outer.fp32_partitioned_groups_flat):
        raise CheckpointError(
            f"{path}: holds {len(masters)} sub-groups, this run has"
            f" {len(outer.fp32_partitioned_groups_flat)}; resume with the sub_group_size of the"
            " first run (resolved/ds_config.json)"
        )
    states = saved["optimizer_state_dict"]["state"]
    _restore_hyperparameters(outer.optimizer, saved["optimizer_state_dict"]["param_groups"])
    for index, flat in enumerate(outer.fp32_partitioned_groups_flat):
        _load_sub_group(outer, index, flat, masters[index], states.get(index))


def _restore_hyperparameters(inner: torch.optim.Optimizer, saved: list[dict[str, Any]]) -> None:
    for group, old in zip(inner.param_groups, saved, strict=True):
        group.update({key: value for key, value in old.items() if key != "params"})


def _load_sub_group(
    outer: Any, index: int, flat: Tensor, master: Tensor, state: dict[str, Any] | None
) -> None:
    # 1) The swapper knows only the master weight yet: it reads that one tensor.
    outer._prepare_sub_group(index, None)
    flat.data.copy_(master)
    # 2) States appear as after the very first optimizer step: fresh tensors in memory, which the
    #    swapper finds when it writes the sub-group out, and takes over.
    if state is not None:
        outer.optimizer.state[flat] = {
            key: value.clone() if torch.is_tensor(value) else value for key, value in state.items()
        }
    # 3) The weights of the forward pass follow from the master.
    outer._reassign_or_swap_out_partitioned_parameters(index)
    outer._release_sub_group(index, None)

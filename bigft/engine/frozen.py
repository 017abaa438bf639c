"""A model that is only asked, beside the one that is trained: partitioned the same way."""

from pathlib import Path
from typing import Any

import deepspeed
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from torch import nn

_ZERO_OF_PARAMETERS = (
    "stage",
    "offload_param",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "sub_group_size",
)
_CACHED = "_PartitionedParameterCoordinator__params_to_release"
_KEPT = ("bf16", "fp16", "train_micro_batch_size_per_gpu", "aio", "steps_per_print")


def build_frozen(module: nn.Module, ds: dict[str, Any]) -> Any:
    """Make a model without gradients ready for forward passes.

    Args:
        module: A transformers model; under stage 3 already partitioned.
        ds: Resolved DeepSpeed JSON of the run.

    Returns:
        Something to call like the module; under stage 3 each layer is gathered where it is needed,
        by an engine without an optimizer.

    Collective: every rank.
    """
    module.requires_grad_(False)
    module.eval()
    zero = ds["zero_optimization"]
    if zero["stage"] != 3:
        return module
    config = {name: ds[name] for name in _KEPT if name in ds}
    # Only stage 3 works without an optimizer.
    config["zero_optimization"] = {k: zero[k] for k in _ZERO_OF_PARAMETERS if k in zero}
    engine, *_ = deepspeed.initialize(model=module, config=config)
    engine.eval()
    return engine


def free_frozen(forward: Any) -> None:
    """Let go of what `build_frozen` made; the caller drops the rest. Collective: every rank."""
    if not isinstance(forward, deepspeed.DeepSpeedEngine):
        return
    module = forward.module
    forward.destroy()
    # DeepSpeed 0.19.8 keeps for good the outermost module of every engine in a list, and the
    # engine itself, by way of a method with a cache, in that cache.
    stack = parameter_offload.FWD_MODULE_STACK
    stack[:] = [kept for kept in stack if kept is not module]
    wrapper = getattr(PartitionedParameterCoordinator, _CACHED, None)
    for cell in getattr(wrapper, "__closure__", None) or ():
        if hasattr(cell.cell_contents, "cache_clear"):
            cell.cell_contents.cache_clear()


def give_own_swap(ds: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON with another folder for parameters on NVMe.

    DeepSpeed empties the folder whenever a model is built (0.19.8, `partitioned_param_swapper`):
    the second one would take the first one's parameters away.
    """
    offload = ds["zero_optimization"].get("offload_param", {})
    if offload.get("device") != "nvme":
        return ds
    own = {**offload, "nvme_path": str(Path(offload["nvme_path"]) / "frozen")}
    return {**ds, "zero_optimization": {**ds["zero_optimization"], "offload_param": own}}

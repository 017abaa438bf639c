"""A model that is only asked, beside the one that is trained: partitioned the same way."""

from typing import Any

import deepspeed
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

"""The DeepSpeed JSONs that `--config auto` chooses among; those with a file are `ds_configs/`."""

import copy
from typing import Any

_AUTO = "auto"

_COMMON: dict[str, Any] = {
    "train_batch_size": _AUTO,
    "train_micro_batch_size_per_gpu": _AUTO,
    "gradient_accumulation_steps": _AUTO,
    "gradient_clipping": _AUTO,
    "bf16": {"enabled": _AUTO},
}
_EARLY: dict[str, Any] = {
    "overlap_comm": True,
    "contiguous_gradients": True,
    "reduce_scatter": True,
    "reduce_bucket_size": _AUTO,
    "allgather_bucket_size": _AUTO,
}
_LATE: dict[str, Any] = {
    "overlap_comm": True,
    "contiguous_gradients": True,
    "reduce_bucket_size": _AUTO,
    "sub_group_size": 100_000_000,
    "stage3_prefetch_bucket_size": _AUTO,
    "stage3_param_persistence_threshold": _AUTO,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
}
_WIDE: dict[str, Any] = {
    **_LATE,
    # All weights stay on each host until they change, and what crosses the network goes in fewer
    # and larger pieces.
    "zero_hpz_partition_size": _AUTO,
    "reduce_bucket_size": 100_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
}
_SMALL = {"stage3_max_live_parameters": 100_000_000, "stage3_max_reuse_distance": 100_000_000}
_HOST = {"device": "cpu", "pin_memory": True}
_NVME_STATES = {"device": "nvme", "nvme_path": _AUTO, "buffer_count": 4, "pin_memory": True}
_NVME_WEIGHTS = {
    **{"device": "nvme", "nvme_path": _AUTO, "buffer_count": 5, "buffer_size": _AUTO},
    **{"max_in_cpu": 0, "pin_memory": True},
}
_AIO = {
    **{"block_size": 1048576, "queue_depth": 16, "intra_op_parallelism": 1},
    **{"single_submit": False, "overlap_events": True},
}

_ZERO: dict[str, dict[str, Any]] = {
    "zero1": {"stage": 1, **_EARLY},
    "zero2": {"stage": 2, **_EARLY},
    "zero3": {"stage": 3, **_LATE},
    "zero3_hosts": {"stage": 3, **_WIDE},
    "zero2_offload": {"stage": 2, "offload_optimizer": _HOST, **_EARLY},
    "zero3_offload_optimizer": {"stage": 3, "offload_optimizer": _HOST, **_LATE},
    "zero3_offload": {"stage": 3, "offload_optimizer": _HOST, "offload_param": _HOST, **_LATE},
    "zero3_offload_small": {
        **{"stage": 3, "offload_optimizer": _HOST, "offload_param": _HOST},
        **_LATE,
        **_SMALL,
    },
    "zero3_nvme": {
        **{"stage": 3, "offload_optimizer": _NVME_STATES, "offload_param": _NVME_WEIGHTS},
        **_LATE,
        # What stays gathered holds a buffer, and there are five.
        **{"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0},
    },
}

TEMPLATES = tuple(_ZERO)
"""Names, from what is fastest where it fits to what fits where nothing else does."""

_SHIPPED = ("zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "zero3_nvme")
FILES = {name: f"ds_configs/{name}.json" for name in _SHIPPED}
"""Those that are files of the repository, too."""


def build_template(name: str) -> dict[str, Any]:
    """Return a DeepSpeed JSON; its "auto" is filled in as that of a file is."""
    ds = {**_COMMON, "zero_optimization": _ZERO[name]}
    if "nvme" in name:
        ds["aio"] = _AIO
    return copy.deepcopy(ds)

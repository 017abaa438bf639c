"""Where the optimizer's arithmetic is done, read from the DeepSpeed JSON alone."""

from typing import Any


def suits_host(ds: dict[str, Any]) -> bool:
    """Whether bf16 or fp32 weights of stage 3 are all stepped in host memory, by `HostAdamW`."""
    zero = ds.get("zero_optimization", {})
    offload = zero.get("offload_optimizer", {})
    device = offload.get("device")
    return (
        zero.get("stage") == 3
        and (device == "nvme" or (device == "cpu" and not _keeps_weights_on_nvme(zero)))
        and not ds.get("fp16", {}).get("enabled")
        and offload.get("ratio", 1.0) == 1.0
    )


def _keeps_weights_on_nvme(zero: dict[str, Any]) -> bool:
    return bool(zero.get("offload_param", {}).get("device") == "nvme")

"""Where the optimizer's arithmetic is done, read from the DeepSpeed JSON alone."""

from typing import Any


def suits_host(ds: dict[str, Any]) -> bool:
    """Whether all bf16 or fp32 weights are stepped in host memory, by `HostAdamW`."""
    zero = ds.get("zero_optimization", {})
    offload = zero.get("offload_optimizer", {})
    stage, device = zero.get("stage"), offload.get("device")
    is_on_nvme = stage == 3 and device == "nvme"
    return (
        (
            is_on_nvme
            or (stage in (1, 2, 3) and device == "cpu" and not _keeps_weights_on_nvme(zero))
        )
        and not ds.get("bf16", {}).get("bf16_master_weights_and_grads")
        and not ds.get("fp16", {}).get("enabled")
        and offload.get("ratio", 1.0) == 1.0
    )


def _keeps_weights_on_nvme(zero: dict[str, Any]) -> bool:
    return bool(zero.get("offload_param", {}).get("device") == "nvme")

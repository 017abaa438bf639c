"""What of a DeepSpeed JSON decides memory and time, with DeepSpeed's own defaults.

Defaults are those of DeepSpeed 0.19.8 (`deepspeed/runtime/zero/config.py`, `offload_config.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Device = Literal["none", "cpu", "nvme"]

_FORMATS = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2}


@dataclass(frozen=True)
class Strategy:
    """How a run is spread over devices, host memory and disks."""

    stage: int
    precision: Literal["bf16", "fp16", "fp32"]
    optimizer_device: Device
    parameter_device: Device
    accumulation_bytes: int
    """Of one element of the summed gradient."""

    sub_group_size: int
    """Elements that stage 3 steps at once."""

    reduce_bucket: int
    """Elements; of all stages above 0."""

    allgather_bucket: int
    """Elements; of stages 1 and 2."""

    prefetch_bucket: int
    """Elements; of stage 3."""

    persistence_threshold: int
    """Elements of the largest parameter that stage 3 keeps whole."""

    max_live: int
    """Elements that stage 3 keeps gathered at most."""

    overlaps: bool
    parameter_buffers: int
    """Number of buffers for parameters on NVMe, each of `parameter_buffer_size` elements."""

    parameter_buffer_size: int
    optimizer_buffers: int
    pins_optimizer: bool
    pins_parameters: bool
    has_own_optimizer: bool
    """The JSON has an `optimizer` block, and DeepSpeed builds it."""

    max_reuse: int = 10**9
    """Elements between two uses of a weight up to which stage 3 keeps it gathered."""

    group: int = 1
    """Ranks that have all weights together, beside all ranks (hpZ); of stage 3."""

    sent_bytes: int = 2
    """Of a gradient on its way to other ranks."""

    reduction: Literal["scatter", "all", "owner"] = "all"
    """What happens to gradients: of stages 1 and 2."""

    quantizes_weights: bool = False
    quantizes_gradients: bool = False

    @property
    def weight_bytes(self) -> int:
        """Of one weight that the forward pass computes with."""
        return _FORMATS[self.precision]

    @property
    def is_split(self) -> bool:
        """Whether weights exist in 16 bits beside what the optimizer keeps."""
        return self.precision != "fp32"


def read_strategy(ds: Mapping[str, Any]) -> Strategy:
    """Read a resolved DeepSpeed JSON."""
    zero = ds.get("zero_optimization", {})
    stage = int(zero.get("stage", 0))
    parameters, optimizer = zero.get("offload_param") or {}, zero.get("offload_optimizer") or {}
    precision = next((p for p in ("bf16", "fp16") if ds.get(p, {}).get("enabled")), "fp32")
    accumulation = ds.get("data_types", {}).get("grad_accum_dtype") or precision
    overlaps = zero.get("overlap_comm")
    goes_to_owner = (
        zero.get("reduce_scatter", True) and zero.get("use_multi_rank_bucket_allreduce") is False
    )
    return Strategy(
        stage=stage,
        precision=precision,  # type: ignore[arg-type]
        optimizer_device=_read_device(optimizer),
        parameter_device=_read_device(parameters) if stage == 3 else "none",
        accumulation_bytes=_FORMATS[accumulation],
        sub_group_size=int(zero.get("sub_group_size", 1e9)),
        reduce_bucket=int(zero.get("reduce_bucket_size", 5e8)),
        allgather_bucket=int(zero.get("allgather_bucket_size", 5e8)),
        prefetch_bucket=int(zero.get("stage3_prefetch_bucket_size", 5e7)),
        persistence_threshold=int(zero.get("stage3_param_persistence_threshold", 1e5)),
        max_live=int(zero.get("stage3_max_live_parameters", 1e9)),
        overlaps=bool(stage == 3 if overlaps is None else overlaps),
        parameter_buffers=int(parameters.get("buffer_count", 5)),
        parameter_buffer_size=int(parameters.get("buffer_size", 1e8)),
        optimizer_buffers=int(optimizer.get("buffer_count", 4)),
        pins_optimizer=bool(optimizer.get("pin_memory", True)),
        pins_parameters=bool(parameters.get("pin_memory", True)),
        has_own_optimizer="optimizer" in ds,
        max_reuse=int(zero.get("stage3_max_reuse_distance", 1e9)),
        group=int(zero.get("zero_hpz_partition_size", 1)) if stage == 3 else 1,
        sent_bytes=_FORMATS[ds.get("communication_data_type") or precision],
        reduction="owner" if goes_to_owner else "all",
        quantizes_weights=bool(zero.get("zero_quantized_weights")) and stage == 3,
        quantizes_gradients=bool(zero.get("zero_quantized_gradients")) and stage == 3,
    )


def _read_device(section: Mapping[str, Any]) -> Device:
    device = section.get("device", "none")
    return device if device in ("cpu", "nvme") else "none"

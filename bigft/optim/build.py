"""Optimizers by name, for the place where their states live."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bigft.errors import ConfigError
from bigft.optim.place import suits_host
from bigft.optim.section import OptimSection

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class OptimizerPlan:
    """Which optimizer will run, before it exists."""

    class_name: str
    """Class of the optimizer that must be found inside the engine."""
    rule: str
    """What it computes, wherever its states are: a checkpoint of one implementation goes on with
    another of the same rule."""
    state_bytes_per_parameter: float
    """Moments and their scales; master weights are ZeRO's and not counted."""
    build: "Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None"
    """None: the DeepSpeed JSON has an optimizer block and DeepSpeed builds it."""
    swap_bytes_per_parameter: float = 16.0
    """What is on NVMe, if anything is: DeepSpeed swaps fp32 weights, gradients and moments."""
    note: str = ""
    """What the user should know about this choice."""


def plan_optimizer(section: OptimSection, ds: dict[str, Any]) -> OptimizerPlan:
    """Choose the implementation for a rule and an offload device.

    With states in host memory both are `HostAdamW`, but for fp16 models. Elsewhere `adamw` is
    DeepSpeed's CPU Adam where the states are offloaded and torch's fused AdamW where they are not,
    and `adamw_8bit` is bitsandbytes' (block-wise 8-bit states, Dettmers et al., arXiv 2110.02861).

    Args:
        section: Rule and hyper-parameters.
        ds: Resolved DeepSpeed JSON.

    Raises:
        ConfigError: The combination would train wrongly.
    """
    offload = ds["zero_optimization"].get("offload_optimizer", {}).get("device", "none")
    if "optimizer" in ds:
        return _plan_from_json(ds["optimizer"]["type"], offload)
    arguments: dict[str, Any] = {
        "lr": section.learning_rate,
        "betas": (section.adam_beta1, section.adam_beta2),
        "eps": section.adam_epsilon,
    }
    if suits_host(ds):
        return _plan_host(section, arguments, ds)
    if section.name == "adamw_8bit":
        return _plan_8bit(arguments, offload)
    if offload in ("cpu", "nvme"):
        return OptimizerPlan(
            "DeepSpeedCPUAdam", "adamw", 8.0, lambda groups: _cpu_adam(groups, arguments)
        )
    return OptimizerPlan("AdamW", "adamw", 8.0, lambda groups: _fused_adamw(groups, arguments))


def _plan_from_json(name: str, offload: str) -> OptimizerPlan:
    rule = name.lower()
    adam = rule in ("adam", "adamw")
    if adam:
        name = "DeepSpeedCPUAdam" if offload in ("cpu", "nvme") else "FusedAdam"
    return OptimizerPlan(name, rule, 8.0 if adam else 0.0, None)


def _plan_host(
    section: OptimSection, arguments: dict[str, Any], ds: dict[str, Any]
) -> OptimizerPlan:
    is_8bit = section.name == "adamw_8bit"
    arguments = {
        **arguments,
        "moment_bits": 8 if is_8bit else 32,
        "rest_bits": section.master_bits - 16,
    }
    moments = 2.03 if is_8bit else 8.0
    is_split = ds.get("bf16", {}).get("enabled")
    return OptimizerPlan(
        "HostAdamW",
        section.name,
        moments,
        lambda groups: _host_adamw(groups, arguments),
        swap_bytes_per_parameter=moments + (section.master_bits / 8 - 2 if is_split else 0),
    )


def _plan_8bit(arguments: dict[str, Any], offload: str) -> OptimizerPlan:
    if offload == "nvme":
        raise ConfigError(
            "--optim adamw_8bit with offload_optimizer.device=nvme needs stage 3, bf16 or fp32, and"
            " no ratio below 1: elsewhere DeepSpeed's swapper turns the 8-bit states into fp32"
            " numbers without a word and training diverges; use --config ds_configs/zero3_nvme.json"
        )
    if offload == "cpu":
        return OptimizerPlan(
            "HostAdamW8bit",
            "adamw_8bit",
            2.03,
            lambda groups: _host_8bit(groups, arguments),
            note="8-bit states in host memory: bitsandbytes' step on the CPU is about 30 times"
            " slower than DeepSpeed's 32-bit one",
        )
    return OptimizerPlan(
        "HostAdamW8bit", "adamw_8bit", 2.03, lambda groups: _host_8bit(groups, arguments)
    )


def _host_adamw(groups: list[dict[str, Any]], arguments: dict[str, Any]) -> "torch.optim.Optimizer":
    from bigft.optim.host import HostAdamW

    return HostAdamW(groups, **arguments)


def _fused_adamw(
    groups: list[dict[str, Any]], arguments: dict[str, Any]
) -> "torch.optim.Optimizer":
    import torch

    return torch.optim.AdamW(groups, fused=True, **arguments)


def _cpu_adam(groups: list[dict[str, Any]], arguments: dict[str, Any]) -> "torch.optim.Optimizer":
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    optimizer: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **arguments)
    return optimizer


def _host_8bit(groups: list[dict[str, Any]], arguments: dict[str, Any]) -> "torch.optim.Optimizer":
    from bigft.optim.adamw_8bit import HostAdamW8bit

    return HostAdamW8bit(groups, **arguments)

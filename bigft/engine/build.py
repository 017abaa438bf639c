"""Settings and parts in, a running DeepSpeed engine out."""

import logging
from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from torch import nn

from bigft.engine.engine import Engine
from bigft.engine.host_zero import host_zero
from bigft.engine.unfused import unstepped
from bigft.errors import ConfigError

logger = logging.getLogger(__name__)

OptimizerBuilder = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
SchedulerBuilder = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


def check_precision(ds: dict[str, Any]) -> None:
    """Refuse a number format that this accelerator cannot compute in, or send.

    Raises:
        ConfigError: Names the switch to turn.
    """
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    if ds.get("bf16", {}).get("enabled") and not accelerator.is_bf16_supported():
        raise ConfigError(
            f"bf16.enabled=true, but {accelerator.device_name()} here does not support bfloat16;"
            " use --ds.bf16.enabled=false --ds.fp16.enabled=true, or fp32 with both false"
        )
    if ds.get("fp16", {}).get("enabled") and not accelerator.is_fp16_supported():
        raise ConfigError(
            f"fp16.enabled=true, but {accelerator.device_name()} here does not support float16;"
            " use --ds.fp16.enabled=false --ds.bf16.enabled=true"
        )
    zero = ds.get("zero_optimization", {})
    for name in ("zero_quantized_weights", "zero_quantized_gradients"):
        if zero.get("stage") == 3 and zero.get(name) and accelerator.device_name() != "cuda":
            raise ConfigError(
                f"zero_optimization.{name}=true, but DeepSpeed has its kernels for NVIDIA GPUs"
                f" alone, and ranks are on {accelerator.device_name()} here; use"
                f" --ds.zero_optimization.{name}=false"
            )


def build_engine(
    module: nn.Module,
    *,
    ds: dict[str, Any],
    groups: list[dict[str, Any]],
    build_optimizer: OptimizerBuilder | None,
    build_scheduler: SchedulerBuilder | None,
    expected_optimizer: str,
) -> Engine:
    """Wrap a module into a DeepSpeed engine and check what really runs.

    Args:
        module: The model; under stage 3 already partitioned.
        ds: Resolved DeepSpeed JSON, no `"auto"` left.
        groups: Parameter groups with their weight decay.
        build_optimizer: From parameter groups to an optimizer; None when the JSON has an
            `optimizer` block and DeepSpeed builds it.
        build_scheduler: From the optimizer to its schedule; None when the JSON has a
            `scheduler` block.
        expected_optimizer: Class name that must run in the end.

    Raises:
        ConfigError: Another optimizer than the asked one would run.

    Collective: every rank.
    """
    with host_zero(), unstepped():
        wrapped, _, _, _ = deepspeed.initialize(
            model=module,
            model_parameters=groups,
            optimizer=build_optimizer,
            lr_scheduler=build_scheduler,
            config=ds,
        )
    engine = Engine(wrapped)
    running = type(engine.inner_optimizer).__name__
    if running != expected_optimizer:
        raise ConfigError(
            f"asked for the optimizer {expected_optimizer}, but DeepSpeed runs {running};"
            " remove the optimizer block from the DeepSpeed JSON, or name it there only"
        )
    logger.info("optimizer %s inside %s", running, type(wrapped.optimizer).__name__)
    return engine

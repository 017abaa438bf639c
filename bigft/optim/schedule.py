"""The learning rate's course, by the names of transformers' own schedules."""

from typing import Any

import torch

from bigft.errors import ConfigError
from bigft.optim.section import OptimSection

# What these schedules cannot do without, when the user gave nothing.
_DEFAULT_MIN_LR_RATE = 0.1
_DEFAULT_DECAY_FRACTION = 0.1


def count_warmup_steps(warmup_steps: float, total_steps: int) -> int:
    """Turn the setting into whole steps; below 1 it is a fraction of all steps."""
    return round(warmup_steps * total_steps) if warmup_steps < 1 else int(warmup_steps)


def build_schedule(
    section: OptimSection, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Build the schedule that `section` names.

    Args:
        section: Name, warm-up and further arguments.
        optimizer: The one whose parameter groups hold the learning rate.
        total_steps: Optimizer steps of the whole run.

    Raises:
        ConfigError: The schedule takes no such argument, or not this value.
    """
    from transformers import get_scheduler

    kwargs: dict[str, Any] = {
        name: int(value) if float(value).is_integer() else value
        for name, value in section.lr_scheduler_kwargs.items()
    }
    if section.lr_scheduler_type == "cosine_with_min_lr" and not {"min_lr", "min_lr_rate"} & set(
        kwargs
    ):
        kwargs["min_lr_rate"] = _DEFAULT_MIN_LR_RATE
    if section.lr_scheduler_type == "warmup_stable_decay":
        kwargs.setdefault("num_decay_steps", max(1, round(_DEFAULT_DECAY_FRACTION * total_steps)))
    try:
        schedule: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
            section.lr_scheduler_type,
            optimizer,
            num_warmup_steps=count_warmup_steps(section.warmup_steps, total_steps),
            num_training_steps=total_steps,
            scheduler_specific_kwargs=kwargs or None,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"--optim.lr_scheduler_type {section.lr_scheduler_type} cannot be built with"
            f" lr_scheduler_kwargs {section.lr_scheduler_kwargs} ({error}); transformers'"
            " documentation of get_scheduler names the arguments of each schedule"
        ) from error
    return schedule

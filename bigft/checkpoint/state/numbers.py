"""The single numbers of an engine: counters, schedule, loss scale, and CPU Adam's own memory."""

from typing import Any

import torch

_COUNTERS = ("global_steps", "global_samples", "skipped_steps")
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def collect_numbers(engine: Any, inner: torch.optim.Optimizer) -> dict[str, Any]:
    """Return plain values that `restore_numbers` puts back."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {
        "counters": {name: int(getattr(engine, name)) for name in _COUNTERS},
        "schedule": _read_schedule(engine.lr_scheduler),
        "loss_scale": {n: getattr(scaler, n) for n in _SCALER if hasattr(scaler, n)},
        # Some of DeepSpeed's optimizers count steps here instead of in the states.
        "group_steps": [group.get("step") for group in inner.param_groups],
    }


def restore_numbers(
    engine: Any, inner: torch.optim.Optimizer, numbers: dict[str, Any], steps: int
) -> None:
    """Put the values of `collect_numbers` back.

    Args:
        engine: A DeepSpeed engine.
        inner: The optimizer inside.
        numbers: What was collected.
        steps: Updates that the optimizer has done.
    """
    for name, value in numbers["counters"].items():
        setattr(engine, name, value)
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    for name, value in numbers["loss_scale"].items():
        if hasattr(scaler, name):
            setattr(scaler, name, value)
    for group, step in zip(inner.param_groups, numbers["group_steps"], strict=False):
        if "step" in group and step is not None:
            group["step"] = step
    _restore_schedule(engine.lr_scheduler, numbers["schedule"])
    if type(inner).__name__ == "DeepSpeedCPUAdam":
        _replay_steps(inner, steps)


def _read_schedule(schedule: Any) -> dict[str, Any]:
    if schedule is None:
        return {}
    plain = (bool, int, float, str, type(None))
    return {
        name: value
        for name, value in schedule.state_dict().items()
        if isinstance(value, plain)
        or (isinstance(value, list) and all(isinstance(item, plain) for item in value))
    }


def _restore_schedule(schedule: Any, saved: dict[str, Any]) -> None:
    if schedule is None or not saved:
        return
    if not isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
        schedule.load_state_dict({**schedule.state_dict(), **saved})
        return
    # The place in the course is the checkpoint's, the course itself this run's: a changed learning
    # rate has to take effect.
    schedule.last_epoch, schedule._step_count = saved["last_epoch"], saved["_step_count"]
    for group, base, rule in zip(
        schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = base * rule(schedule.last_epoch)
    schedule._last_lr = [group["lr"] for group in schedule.optimizer.param_groups]


def _replay_steps(inner: Any, steps: int) -> None:
    """Bring the operator's powers of beta to where they were, rounding included.

    DeepSpeed's CPU Adam multiplies beta**t up in fp32, one factor per step, and starts anew with
    `pow` when it meets a later step: a resumed run would differ in the last bits from then on. So
    all steps are counted again, on tensors of one element.
    """
    group = inner.param_groups[0]
    beta1, beta2 = group["betas"]
    row = [torch.zeros(1) for _ in range(4)]
    for step in range(1, steps + 1):
        inner.ds_opt_adam.adam_update(
            inner.opt_id, step, group["lr"], beta1, beta2, group["eps"], 0.0, True, *row
        )

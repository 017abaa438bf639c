"""No value that is not finite reaches weights, master weights or moments.

DeepSpeed 0.19.8 skips a step whose global gradient norm is not finite, on all ranks alike, under
ZeRO stages 1 to 3 and for 16-bit models at stage 0. Three ways lead around that, and are closed
here: a loss that is not finite with gradients that are, a plain optimizer (stage 0 in fp32), and
two switches of its JSON. And one way leads from there to nowhere: stages 1 and 2 with the optimizer
in host memory and fp32 accumulation keep the broken gradients and add all later ones to them.
"""

import math
from typing import Any

import torch
from torch import Tensor


def scale_loss(loss_sum: Tensor, factor: float) -> Tensor:
    """Multiply a loss and the gradients that come of it by `factor`; by NaN if it is not finite.

    The loss can be infinite while its gradients are finite: minus infinity as the logit of a
    target. Such a step would change weights as if nothing were wrong; this way it is skipped
    like one with a broken gradient, without another collective or a look at the device.
    """
    return loss_sum * torch.where(torch.isfinite(loss_sum), factor, math.nan)


def guard(wrapped: Any) -> None:
    """Make the engine skip every step whose gradients are not finite.

    Args:
        wrapped: The engine that `deepspeed.initialize` returned.
    """
    outer = wrapped.optimizer
    if not hasattr(outer, "overflow"):
        _guard_plain(wrapped)
    elif hasattr(outer, "check_grad_overflow") and not _judges_norm(outer):
        # bf16.check_grad_overflow or zero_optimization.compute_grad_norm is false.
        outer.check_grad_overflow = True
    if getattr(outer, "cpu_offload", False) and hasattr(outer, "averaged_gradients"):
        _forget_skipped(outer)


def _forget_skipped(outer: Any) -> None:
    """Let go of the accumulated gradients also after a step that was skipped."""
    reset = outer.reset_cpu_buffers

    def reset_all() -> None:
        reset()
        # After a step that went through they are gone already.
        for group in outer.averaged_gradients:
            outer.averaged_gradients[group] = None

    outer.reset_cpu_buffers = reset_all


def _judges_norm(outer: Any) -> bool:
    return bool(outer.compute_grad_norm) and (
        outer.dtype != torch.bfloat16 or bool(outer.check_grad_overflow)
    )


def _guard_plain(wrapped: Any) -> None:
    """Teach a plain torch optimizer to skip.

    Its gradients are the same on every rank, so each rank decides for itself and all decide
    alike. DeepSpeed would clip first and forget the norm; here it is kept, for the log.
    """
    optimizer = wrapped.optimizer
    step, limit = optimizer.step, float(wrapped.gradient_clipping())
    optimizer.overflow = False
    optimizer._global_grad_norm = 0.0

    def guarded(*args: Any, **kwargs: Any) -> Any:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        optimizer._global_grad_norm = float(norm)
        optimizer.overflow = not math.isfinite(optimizer._global_grad_norm)
        if optimizer.overflow:
            return None
        if limit > 0.0:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return step(*args, **kwargs)

    # The schedule looks for this mark, which it left on the method that is called inside.
    guarded._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    optimizer.step = guarded
    wrapped.clip_fp32_gradients = lambda: None

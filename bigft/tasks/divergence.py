"""Cross-entropy mixed with the divergence from a teacher, without logits in fp32.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531. Chunks
of rows as in `cross_entropy`, with the gradient written over the student's logits.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bigft.tasks.cross_entropy import cut_chunks


@dataclass(frozen=True)
class Mixture:
    """How a student learns from labels and from its teacher."""

    temperature: float = 2.0
    """Both distributions are softened by it; above 0."""

    weight: float = 0.5
    """Of the divergence, 0 to 1; the rest is cross-entropy. It is multiplied by the square of the
    temperature, so that its gradient does not shrink with it."""


class _SumDistillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        taught: Tensor,
        labels: Tensor,
        row_losses: Tensor | None,
        mixture: Mixture,
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        ctx.headroom = _find_headroom(logits, mixture)
        # Tables may be padded to different sizes; what a tokenizer gives is in both.
        width = min(logits.shape[1], taught.shape[1])
        for rows in cut_chunks(logits):
            picked = labels[rows, None]
            log_p = torch.log_softmax(logits[rows], dim=-1, dtype=torch.float32)
            losses = -log_p.gather(1, picked).squeeze(1) * (1 - mixture.weight)
            soft = logits[rows, :width].float() / mixture.temperature
            log_soft = soft.log_softmax(-1)
            log_taught = (taught[rows, :width].float() / mixture.temperature).log_softmax(-1)
            probabilities = log_taught.exp()
            divergence = (probabilities * (log_taught - log_soft)).sum(1)
            losses += mixture.weight * mixture.temperature**2 * divergence
            total += losses.sum()
            if row_losses is not None:
                row_losses[rows] = losses
            if ctx.needs_input_grad[0]:
                gradient = log_p.exp_()
                gradient.scatter_add_(1, picked, gradient.new_full(picked.shape, -1.0))
                gradient.mul_(1 - mixture.weight)
                # The derivative by the logits has one factor of the temperature less.
                slope = mixture.weight * mixture.temperature
                gradient[:, :width].add_(log_soft.exp_().sub_(probabilities), alpha=slope)
                logits[rows] = gradient.mul_(ctx.headroom)
        ctx.save_for_backward(logits)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (unscaled,) = ctx.saved_tensors
        return unscaled.mul_(gradients[0] / ctx.headroom), None, None, None, None


def _find_headroom(logits: Tensor, mixture: Mixture) -> float:
    """Find the largest power of two that cannot overflow fp16; see `cross_entropy`."""
    if logits.dtype != torch.float16:
        return 1.0
    # Differences of probabilities are at most 1.
    bound = 1 - mixture.weight + mixture.weight * mixture.temperature
    return 2.0 ** math.floor(math.log2(torch.finfo(torch.float16).max / bound))


def sum_distillation(
    logits: Tensor,
    taught: Tensor,
    labels: Tensor,
    row_losses: Tensor | None = None,
    mixture: Mixture = Mixture(),  # noqa: B008 (frozen)
) -> Tensor:
    """Sum `(1 - w) CE(labels, student) + w T^2 KL(teacher / T, student / T)` over rows.

    Args:
        logits: `(N, V)` of the student. **Overwritten by its gradient** where one is asked for.
        taught: `(N, W)` of the teacher; of V and W entries those that both have are compared.
        labels: `(N,)` int64, every entry in `[0, V)`.
        row_losses: `(N,)` fp32, filled with the loss of each row, without gradient.
        mixture: Temperature T and weight w.

    Returns:
        Scalar fp32 with gradient; 0 for `N = 0`.

    Memory: both logits once, plus temporaries of a few chunks of 32 MiB (16 MiB on a CPU).
    """
    total: Tensor = _SumDistillation.apply(logits, taught, labels, row_losses, mixture)
    return total

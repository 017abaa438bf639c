"""Cross-entropy mixed with the divergence from a teacher, without logits in fp32.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531. Chunks
of rows as in `cross_entropy`, with the gradient written over the student's logits.

Of a teacher's K most likely tokens alone, all others are one more outcome: the divergence over
K + 1 outcomes never exceeds the whole one, grows with K, and is the whole one when a single token
is left over. Without that outcome the probabilities would have to be scaled up to 1, and a student
that learns them is too sure of itself (Anshumann et al., arXiv 2503.16870).
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


@dataclass(frozen=True)
class Brief:
    """What a teacher says of N tokens, in short; softened by the temperature."""

    ids: Tensor
    """`(N, K)` int64, the most likely tokens."""

    log_p: Tensor
    """`(N, K + 1)` fp32, their log-probabilities, and that of all other tokens together; the sum of
    the probabilities is 1."""

    width: int
    """Tokens that the teacher chose among, the first ones of its table."""

    def to(self, device: torch.device) -> "Brief":
        """Copy to a device."""
        return Brief(self.ids.to(device), self.log_p.to(device), self.width)


@torch.no_grad()
def shorten(taught: Tensor, count: int, temperature: float, num_tokens: int) -> Brief:
    """Keep the most likely tokens of a teacher.

    Args:
        taught: Its logits, `(N, W)`.
        count: Tokens to keep, K; one less than there are is already everything.
        temperature: Softens the distribution.
        num_tokens: Of the tokenizer; what a padded table has beyond them does not count.
    """
    width = min(taught.shape[1], num_tokens)
    count = min(count, width - 1)
    ids = torch.empty(len(taught), count, dtype=torch.int64, device=taught.device)
    log_p = torch.empty(len(taught), count + 1, dtype=torch.float32, device=taught.device)
    for rows in cut_chunks(taught):
        soft = (taught[rows, :width].float() / temperature).log_softmax(-1)
        log_p[rows, :count], ids[rows] = soft.topk(count, -1)
        # Not 1 minus the others: the difference of nearly equal numbers.
        log_p[rows, count] = soft.scatter_(1, ids[rows], -math.inf).logsumexp(-1)
    return Brief(ids, log_p, width)


class _SumDistillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        taught: Tensor | Brief,
        labels: Tensor,
        row_losses: Tensor | None,
        mixture: Mixture,
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        ctx.headroom = _find_headroom(logits, mixture)
        compare: Any = _compare_briefly if isinstance(taught, Brief) else _compare_wholly
        for rows in cut_chunks(logits):
            picked = labels[rows, None]
            log_p = torch.log_softmax(logits[rows], dim=-1, dtype=torch.float32)
            losses = -log_p.gather(1, picked).squeeze(1) * (1 - mixture.weight)
            divergence, difference = compare(logits[rows], taught, rows, mixture.temperature)
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
                gradient[:, : difference.shape[1]].add_(difference, alpha=slope)
                logits[rows] = gradient.mul_(ctx.headroom)
        ctx.save_for_backward(logits)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (unscaled,) = ctx.saved_tensors
        return unscaled.mul_(gradients[0] / ctx.headroom), None, None, None, None


def _compare_wholly(
    logits: Tensor, taught: Tensor, rows: slice, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the divergence of each row, and its derivative by the softened logits."""
    # Tables may be padded to different sizes; what a tokenizer gives is in both.
    width = min(logits.shape[1], taught.shape[1])
    log_soft = (logits[:, :width].float() / temperature).log_softmax(-1)
    log_taught = (taught[rows, :width].float() / temperature).log_softmax(-1)
    probabilities = log_taught.exp()
    divergence = (probabilities * (log_taught - log_soft)).sum(1)
    return divergence, log_soft.exp_().sub_(probabilities)


def _compare_briefly(
    logits: Tensor, taught: Brief, rows: slice, temperature: float
) -> tuple[Tensor, Tensor]:
    """Do the same over the K tokens, and all others as one."""
    ids, log_taught = taught.ids[rows], taught.log_p[rows]
    log_soft = (logits[:, : taught.width].float() / temperature).log_softmax(-1)
    others = log_soft.scatter(1, ids, -math.inf)
    log_rest = others.logsumexp(1, keepdim=True)
    probabilities = log_taught.exp()
    own = torch.cat([log_soft.gather(1, ids), log_rest], 1)
    # A probability of 0 has the logarithm of minus infinity.
    divergence = (probabilities * (log_taught - own)).where(probabilities > 0, 0.0).sum(1)
    # The others share what the teacher gives them as the student divides it among them.
    shares = others.sub_(log_rest).exp_().mul_(probabilities[:, -1:])
    difference = log_soft.exp_().sub_(shares)
    return divergence, difference.scatter_add_(1, ids, -probabilities[:, :-1])


def _find_headroom(logits: Tensor, mixture: Mixture) -> float:
    """Find the largest power of two that cannot overflow fp16; see `cross_entropy`."""
    if logits.dtype != torch.float16:
        return 1.0
    # Differences of probabilities are at most 1.
    bound = 1 - mixture.weight + mixture.weight * mixture.temperature
    return 2.0 ** math.floor(math.log2(torch.finfo(torch.float16).max / bound))


def sum_distillation(
    logits: Tensor,
    taught: Tensor | Brief,
    labels: Tensor,
    row_losses: Tensor | None = None,
    mixture: Mixture = Mixture(),  # noqa: B008 (frozen)
) -> Tensor:
    """Sum `(1 - w) CE(labels, student) + w T^2 KL(teacher / T, student / T)` over rows.

    Args:
        logits: `(N, V)` of the student. **Overwritten by its gradient** where one is asked for.
        taught: `(N, W)` of the teacher, of V and W entries those that both have are compared; or
            what `shorten` made of them with the same temperature.
        labels: `(N,)` int64, every entry in `[0, V)`.
        row_losses: `(N,)` fp32, filled with the loss of each row, without gradient.
        mixture: Temperature T and weight w.

    Returns:
        Scalar fp32 with gradient; 0 for `N = 0`.

    Memory: both logits once, plus temporaries of a few chunks of 32 MiB (16 MiB on a CPU).
    """
    total: Tensor = _SumDistillation.apply(logits, taught, labels, row_losses, mixture)
    return total

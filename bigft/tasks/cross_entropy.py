"""Summed cross-entropy that never holds the logits in fp32.

The plain way upcasts all logits: 4096 tokens x 152k entries are 2.5 GB in fp32, several times
over. Here chunks of rows are upcast one after the other, and the gradient is written over the
logits themselves while each chunk is at hand, as in Liger Kernel (Hsu et al. 2024); the backward
pass only scales it. Label smoothing, z-loss and focal loss are computed from the same chunk.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# fp32 elements per temporary: 32 MiB on an accelerator, where the loop should cost nothing; 16 MiB
# on a CPU (512 x 128k, one thread: 1.05 -> 0.68 s). Smaller ones are a little faster still on idle
# cores, but each chunk makes the threads wait for each other: twice as slow on busy ones.
_CHUNK_ELEMENTS = 1 << 23
_CHUNK_ELEMENTS_CPU = 1 << 22


@dataclass(frozen=True)
class LossForm:
    """What the loss of a row has besides plain cross-entropy; 0 leaves a term out, at no cost."""

    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes, the right one included, in
    `[0, 1]` (Szegedy et al. 2016), as in `torch.nn.functional.cross_entropy`."""

    z_loss: float = 0.0
    """Weight of `logsumexp(logits)**2`, which keeps the logits from drifting away from zero
    (PaLM, Chowdhery et al. 2022: 1e-4)."""

    focal_gamma: float = 0.0
    """Exponent of the factor `(1 - p)**gamma` of the cross-entropy, p being the probability of the
    right class: it turns the weight to what is not yet known (Lin et al. 2017: 2)."""

    def __post_init__(self) -> None:
        """Refuse what is out of range, and terms that contradict each other.

        Raises:
            ValueError: A field is out of range or not finite, or focal loss meets label smoothing:
                its factor looks at the right class alone.
        """
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing={self.label_smoothing} is not between 0 and 1")
        for name in ("z_loss", "focal_gamma"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"{name}={value} is negative or not finite; 0 leaves it out")
        if self.label_smoothing and self.focal_gamma:
            raise ValueError(
                f"label_smoothing={self.label_smoothing} with focal_gamma={self.focal_gamma}:"
                " the focal factor is defined for one right class; set one of them to 0"
            )


PLAIN = LossForm()
"""Cross-entropy and nothing else."""


class _SumCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, row_losses: Tensor | None, form: LossForm
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        ctx.headroom = _find_headroom(logits, form)
        for rows in cut_chunks(logits):
            log_probabilities = torch.log_softmax(logits[rows], dim=-1, dtype=torch.float32)
            picked = labels[rows, None]
            log_p = log_probabilities.gather(1, picked)
            lse = None
            if form.z_loss:
                # One logit tells what softmax subtracted from all: no pass of its own.
                lse = logits[rows].gather(1, picked).float() - log_p
            losses = _find_losses(log_probabilities, log_p, lse, form).squeeze(1)
            total += losses.sum()
            if row_losses is not None:
                row_losses[rows] = losses
            if ctx.needs_input_grad[0]:
                # The chunk is at hand now: doing this in the backward pass would read it again.
                gradient = log_probabilities.exp_()
                _differentiate(gradient, picked, log_p, lse, form, ctx.headroom)
                logits[rows] = gradient
        ctx.save_for_backward(logits)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (unscaled,) = ctx.saved_tensors
        return unscaled.mul_(gradients[0] / ctx.headroom), None, None, None


def _find_losses(
    log_probabilities: Tensor, log_p: Tensor, lse: Tensor | None, form: LossForm
) -> Tensor:
    """Losses `(R, 1)` of R rows; `log_p` and `lse` are `(R, 1)` too."""
    losses = -log_p
    if smoothing := form.label_smoothing:
        losses = losses * (1 - smoothing) - log_probabilities.mean(1, keepdim=True) * smoothing
    if form.focal_gamma:
        losses = losses * (-torch.expm1(log_p)) ** form.focal_gamma
    if lse is not None:
        losses = losses + form.z_loss * lse.square()
    return losses


def _differentiate(
    probabilities: Tensor,
    picked: Tensor,
    log_p: Tensor,
    lse: Tensor | None,
    form: LossForm,
    headroom: float,
) -> None:
    """Overwrite probabilities `(R, V)` with the gradient of the losses, times `headroom`.

    With s the slope of the focal loss (1 without), e the label smoothing and z the z-loss it is
    `(s + 2 z lse) p - s (1 - e) [at the label] - e / V`. Only `e / V` needs a pass of its own: the
    headroom multiplies all entries anyway.
    """
    slope: float | Tensor = headroom
    if form.focal_gamma:
        slope = headroom * _find_focal_slope(log_p, form.focal_gamma)
    pull = slope if lse is None else slope + 2 * form.z_loss * headroom * lse
    at_label = torch.zeros_like(log_p).sub_(slope * (1 - form.label_smoothing))
    probabilities.mul_(pull).scatter_add_(1, picked, at_label)
    if form.label_smoothing:
        probabilities.sub_(headroom * form.label_smoothing / probabilities.shape[1])


def _find_focal_slope(log_p: Tensor, gamma: float) -> Tensor:
    """Derivative of `(1 - p)**gamma * log(p)` by `log(p)`, for any p from 0 to 1.

    It is `w**gamma (1 - gamma p log(p) / w)` of `w = 1 - p`; as `-p log(p) <= w`, it lies between
    0 and `1 + gamma`.
    """
    # The limits are 0 at p = 1 and 1 at p = 0. Clamping reaches them without 0 / 0 and 0 * inf;
    # between them nothing changes: the next to 0 that fp32 softmax gives is log(p) = -1e-7.
    limits = torch.finfo(torch.float32)
    log_p = log_p.clamp(limits.min, -limits.tiny)
    # expm1: 1 - exp(log(p)) has no digits left where p is near 1.
    w = -torch.expm1(log_p)
    return w**gamma * (1 - gamma * log_p.exp() * log_p / w)


def _find_headroom(logits: Tensor, form: LossForm) -> float:
    """Find the power of two that the stored gradient is multiplied by.

    Small probabilities would vanish in fp16, so it is the largest that cannot overflow. The
    gradient of cross-entropy, smoothed or not, is at most 1: 2**15. That of focal loss is at most
    `1 + gamma` (`_find_focal_slope`): 2**14 for gamma 2. z-loss adds at most `2 z |lse|`, and the
    lse of fp16 logits is at most 65504 + log(V): 2**12 for z = 1e-4.
    """
    if logits.dtype != torch.float16:
        return 1.0
    largest = torch.finfo(torch.float16).max
    largest_lse = largest + math.log(logits.shape[-1])
    bound = 1 + form.focal_gamma + 2 * form.z_loss * largest_lse
    return 2.0 ** math.floor(math.log2(largest / bound))


def cut_chunks(logits: Tensor) -> list[slice]:
    """Cut rows `(N, V)` into pieces whose fp32 copies are small."""
    elements = _CHUNK_ELEMENTS_CPU if logits.device.type == "cpu" else _CHUNK_ELEMENTS
    step = max(1, elements // logits.shape[-1])
    return [slice(start, start + step) for start in range(0, len(logits), step)]


def sum_cross_entropy(
    logits: Tensor, labels: Tensor, row_losses: Tensor | None = None, form: LossForm = PLAIN
) -> Tensor:
    """Sum the cross-entropy over rows.

    Args:
        logits: `(N, V)`, any float type. **Overwritten by its gradient** where one is asked for:
            do not use it afterwards, and do not run backward twice.
        labels: `(N,)` int64, every entry in `[0, V)`.
        row_losses: `(N,)` fp32, filled with the loss of each row, all terms included, without
            gradient.
        form: What is added to plain cross-entropy.

    Returns:
        Scalar fp32 with gradient; 0 for `N = 0`.

    Memory: `logits` once, plus temporaries of a few chunks of 32 MiB (16 MiB on a CPU).
    """
    total: Tensor = _SumCrossEntropy.apply(logits, labels, row_losses, form)
    return total

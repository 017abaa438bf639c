"""Losses and scores of tasks whose every learned entry is a token."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bigft.data.loading.collate import Batch, find_learned
from bigft.tasks.cross_entropy import LossForm, sum_cross_entropy
from bigft.tasks.section import TaskSection
from bigft.tasks.task import LossSum, Score, Totals


@dataclass(frozen=True)
class Predicted:
    """The learned tokens of a micro-batch, and what was predicted for them."""

    logits: Tensor
    """`(N, V)`; overwritten by the loss."""
    targets: Tensor
    """`(N,)`."""
    sources: Tensor | None
    """`(N,)`."""
    num_sources: int


def pick_learned(
    logits_BTV: Tensor, targets_BT: Tensor, sources_BT: Tensor | None, num_sources: int
) -> Predicted:
    """Leave out what does not count."""
    learned = find_learned(targets_BT)
    sources = None if sources_BT is None else sources_BT[learned]
    if bool(learned.all()):
        # No copy of what is the largest tensor of a step.
        return Predicted(logits_BTV.flatten(0, 1), targets_BT.flatten(), sources, num_sources)
    return Predicted(logits_BTV[learned], targets_BT[learned], sources, num_sources)


def pick_labels(logits_BTV: Tensor, batch: Batch) -> Predicted:
    """Leave out what does not count, where logits stand beside their labels."""
    return pick_learned(logits_BTV, batch.labels, batch.sources, batch.num_sources)


def build_form(section: TaskSection) -> LossForm:
    """Take the form of the loss from the settings."""
    return LossForm(
        label_smoothing=section.label_smoothing,
        z_loss=section.z_loss,
        focal_gamma=section.focal_gamma,
    )


def sum_losses(predicted: Predicted, form: LossForm) -> LossSum:
    """Sum the losses of one micro-batch, with gradient."""
    losses = make_losses(predicted)
    total = sum_cross_entropy(predicted.logits, predicted.targets, losses, form)
    return LossSum(
        total,
        len(predicted.targets),
        sum_by_source(losses, predicted.sources, predicted.num_sources),
    )


def score_tokens(predicted: Predicted) -> Score:
    """Sum losses and hits; the plain cross-entropy, whatever was trained with."""
    correct = int((predicted.logits.argmax(-1) == predicted.targets).sum())
    losses = make_losses(predicted)
    total = float(sum_cross_entropy(predicted.logits, predicted.targets, losses))
    by_source = sum_by_source(losses, predicted.sources, predicted.num_sources)
    return Score(total, correct, len(predicted.targets), by_source)


def judge_tokens(totals: Totals) -> dict[str, float]:
    """Return perplexity and token accuracy."""
    largest = math.log(float(torch.finfo(torch.float32).max))
    # In this order, so that the perplexity of NaN is NaN.
    perplexity = math.inf if totals.loss > largest else math.exp(totals.loss)
    return {"perplexity": perplexity, "token_accuracy": totals.accuracy}


def sum_by_source(losses: Tensor | None, sources: Tensor | None, num_sources: int) -> Tensor | None:
    """Sum losses and terms of each part of the data, `(num_sources, 2)`."""
    if losses is None or sources is None:
        return None
    losses = losses.detach()
    sums = losses.new_zeros(num_sources, 2)
    return sums.index_add_(0, sources, torch.stack([losses, torch.ones_like(losses)], 1))


def make_losses(predicted: Predicted) -> Tensor | None:
    """Make room for the losses of all tokens, `(N,)`, where somebody wants them by source."""
    if predicted.sources is None:
        return None
    return predicted.logits.new_empty(len(predicted.targets), dtype=torch.float32)

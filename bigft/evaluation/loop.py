"""Score a model on held-out batches, weighted by tokens over all ranks."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from bigft.data.collate import Batch
from bigft.tasks.task import Forward, Score, Task

SumOverRanks = Callable[[list[float]], list[float]]


def evaluate(
    task: Task,
    forward: Forward,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    sum_over_ranks: SumOverRanks,
) -> dict[str, float]:
    """Score every batch and combine the sums of all ranks.

    Args:
        task: How to score.
        forward: The engine or a plain module, in evaluation mode.
        batches: This rank's share; every rank must have the same number of batches.
        device: Where the model computes.
        sum_over_ranks: Adds a row of numbers over ranks; identity for one process.

    Returns:
        `loss` (mean over supervised tokens), `perplexity`, `token_accuracy`, `tokens`.

    Collective: every rank, when `forward` is an engine.
    """
    scores = [task.score(forward, batch.to(device)) for batch in batches]
    loss, correct, tokens = sum_over_ranks(_total(scores))
    mean = loss / max(tokens, 1.0)
    return {
        "loss": mean,
        "perplexity": _perplexity(mean),
        "token_accuracy": correct / max(tokens, 1.0),
        "tokens": tokens,
    }


def _perplexity(mean: float) -> float:
    largest = math.log(float(torch.finfo(torch.float32).max))
    # In this order, so that the perplexity of NaN is NaN.
    return math.inf if mean > largest else math.exp(mean)


def _total(scores: list[Score]) -> list[float]:
    return [
        math.fsum(score.loss for score in scores),
        float(sum(score.correct for score in scores)),
        float(sum(score.tokens for score in scores)),
    ]


def stay_alone(row: list[float]) -> list[float]:
    """Return the row itself: the sum over one process."""
    return row


def sum_rows(rows: Tensor) -> list[float]:
    """Sum gathered rows `(world_size, n)` over ranks."""
    return [float(value) for value in rows.sum(0)]

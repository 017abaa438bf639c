"""Score a model on held-out batches, weighted by tokens over all ranks."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from bigft.data.loading.collate import Batch
from bigft.tasks.task import Forward, Score, Task

SumOverRanks = Callable[[list[float]], list[float]]


def evaluate(
    task: Task,
    forward: Forward,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    sum_over_ranks: SumOverRanks,
    sources: Sequence[str] = (),
) -> dict[str, float]:
    """Score every batch and combine the sums of all ranks.

    Args:
        task: How to score.
        forward: The engine or a plain module, in evaluation mode.
        batches: This rank's share; every rank must have the same number of batches.
        device: Where the model computes.
        sum_over_ranks: Adds a row of numbers over ranks; identity for one process.
        sources: Names of the parts of the data.

    Returns:
        `loss` (mean over supervised tokens), `perplexity`, `token_accuracy`, `tokens`; of several
        parts also `loss/<name>` of each that had a token.

    Collective: every rank, when `forward` is an engine.
    """
    scores = [task.score(forward, batch.to(device)) for batch in batches]
    named = sources if len(sources) > 1 else ()
    loss, correct, tokens, *by_source = sum_over_ranks(_total(scores, len(named)))
    mean = loss / max(tokens, 1.0)
    return {
        "loss": mean,
        "perplexity": _perplexity(mean),
        "token_accuracy": correct / max(tokens, 1.0),
        "tokens": tokens,
        **{
            f"loss/{name}": by_source[2 * number] / by_source[2 * number + 1]
            for number, name in enumerate(named)
            if by_source[2 * number + 1]
        },
    }


def _perplexity(mean: float) -> float:
    largest = math.log(float(torch.finfo(torch.float32).max))
    # In this order, so that the perplexity of NaN is NaN.
    return math.inf if mean > largest else math.exp(mean)


def _total(scores: list[Score], num_sources: int) -> list[float]:
    by_source = torch.zeros(num_sources, 2, dtype=torch.float64)
    for score in scores:
        if num_sources and score.by_source is not None:
            by_source += score.by_source.double().cpu()
    return [
        math.fsum(score.loss for score in scores),
        float(sum(score.correct for score in scores)),
        float(sum(score.tokens for score in scores)),
        *by_source.flatten().tolist(),
    ]


def stay_alone(row: list[float]) -> list[float]:
    """Return the row itself: the sum over one process."""
    return row


def sum_rows(rows: Tensor) -> list[float]:
    """Sum gathered rows `(world_size, n)` over ranks."""
    return [float(value) for value in rows.sum(0)]

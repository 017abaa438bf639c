"""Score a model on held-out batches, weighted by the terms of the loss over all ranks."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from bigft.data.loading.collate import Batch, find_learned
from bigft.tasks.task import Forward, Score, Totals

SumOverRanks = Callable[[list[float]], list[float]]
GatherRows = Callable[[Tensor], Tensor]


class Scorer(Protocol):
    """The part of a task that an evaluation needs."""

    unit: str

    def score(self, forward: Forward, batch: Batch) -> Score:
        """See `Task`."""

    def judge(self, totals: Totals) -> dict[str, float]:
        """See `Task`."""


def evaluate(
    task: Scorer,
    forward: Forward,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    sum_over_ranks: SumOverRanks,
    gather: GatherRows,
    sources: Sequence[str] = (),
) -> dict[str, float]:
    """Score every batch and combine what all ranks have found.

    Args:
        task: How to score.
        forward: The engine or a plain module, in evaluation mode.
        batches: This rank's share; every rank must have the same number of batches.
        device: Where the model computes.
        sum_over_ranks: Adds a row of numbers over ranks; identity for one process.
        gather: Stacks the rows `(n, k)` of all ranks, n of each its own; identity for one process.
        sources: Names of the parts of the data.

    Returns:
        `loss` (mean over its terms), the task's metrics, the number of terms by their name
        (`tokens`, `labels` or `numbers`); of several parts also `loss/<name>` of each that had a
        term, and `<metric>/<name>` of metrics that are made from the outcomes of rows.

    Collective: every rank, when `forward` is an engine.
    """
    scores, tables = [], []
    for batch in batches:
        score = task.score(forward, batch.to(device))
        scores.append(score)
        if score.outcomes is not None:
            tables.append(_add_source(score.outcomes, batch))
    named = sources if len(sources) > 1 else ()
    loss, correct, terms, *by_source = sum_over_ranks(_total(scores, len(named)))
    mean = loss / max(terms, 1.0)
    table = gather(_join(tables, device)).double().cpu()
    outcomes, parts = table[:, :-1], table[:, -1:].flatten()
    sums = tuple(zip(by_source[::2], by_source[1::2], strict=True))
    means = {number: loss / count for number, (loss, count) in enumerate(sums) if count}
    return {
        "loss": mean,
        # Of several tasks the loss is another one.
        **task.judge(Totals(mean, correct / max(terms, 1.0), outcomes, sums)),
        task.unit: terms,
        **{f"loss/{named[number]}": loss for number, loss in means.items()},
        **{
            f"{metric}/{name}": value
            for number, name in enumerate(named)
            for metric, value in _judge_part(
                task,
                Totals(
                    means.get(number, math.nan), math.nan, outcomes[parts == number], source=number
                ),
            ).items()
        },
    }


def describe_scores(scores: dict[str, float], unit: str) -> str:
    """Write the scores in a line for people."""
    words = [f"loss {scores['loss']:.4f}"]
    for name, value in scores.items():
        if name in ("loss", unit) or "/" in name:
            continue
        shown = f"{100 * value:.1f}%" if name.endswith("accuracy") else f"{value:.4g}"
        words.append(f"{name.replace('_', ' ')} {shown}")
    return ", ".join(words)


def _add_source(outcomes: Tensor, batch: Batch) -> Tensor:
    """Put the number of the part of the data behind the outcome of each row, `(rows, n + 1)`."""
    outcomes = outcomes.double()
    if batch.sources is None:
        sources = outcomes.new_zeros(len(outcomes))
    else:
        # As tasks do it: rows of padding have no outcome.
        sources = batch.sources[find_learned(batch.labels).all(1)].amax(1).to(outcomes)
    return torch.cat([outcomes, sources[:, None]], 1)


def _judge_part(task: Scorer, totals: Totals) -> dict[str, float]:
    # Only what is made from outcomes is asked for.
    return task.judge(totals) if len(totals.outcomes) else {}


def _join(outcomes: list[Tensor], device: torch.device) -> Tensor:
    return torch.cat(outcomes) if outcomes else torch.zeros(0, 0, device=device)


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


def keep_rows(rows: Tensor) -> Tensor:
    """Return the rows themselves: those of one process."""
    return rows

"""What each example adds to the scores of a model, so that two models can be compared."""

from dataclasses import replace
from typing import Any

import torch

from bigft.data.loading.collate import Batch
from bigft.tasks.task import Forward, Score, Task, Totals

Sums = dict[int, list[float]]
"""Digest of an example -> what is added up over examples, before a metric is computed of it."""


class PerExample:
    """Scores as a task does, and keeps the losses of every row; rows may not share a sequence."""

    def __init__(self, task: Task) -> None:
        """Take the task."""
        self._task = task
        self.unit = task.unit
        self._losses: list[torch.Tensor] = []
        self._outcomes: list[torch.Tensor] = []

    def score(self, forward: Forward, batch: Batch) -> Score:
        """Score as the task does."""
        rows = torch.arange(len(batch.labels), device=batch.labels.device)
        # To the task, every row is a part of the data of its own.
        numbered = replace(
            batch,
            sources=rows[:, None].expand_as(batch.labels).contiguous(),
            num_sources=len(rows),
        )
        score = self._task.score(forward, numbered)
        assert score.by_source is not None, "there are sources"
        self._losses.append(score.by_source.double().cpu())
        if score.outcomes is not None:
            self._outcomes.append(score.outcomes.double().cpu())
        return replace(score, by_source=_sum_parts(score.by_source, batch))

    def judge(self, totals: Totals) -> dict[str, float]:
        """Judge as the task does."""
        return self._task.judge(totals)

    def sum_examples(self, digests: list[int]) -> dict[str, Sums]:
        """Add up what belongs to each example.

        Args:
            digests: Of the rows, in the order of the batches.

        Returns:
            `loss` (its sum, its terms); of one label or several also `accuracy` (rows that are
            right, rows), of numbers `mae` (mean error of the row, rows).
        """
        losses = torch.cat(self._losses)[: len(digests)]
        has_terms = losses[:, 1] > 0
        scored = [digest for digest, has in zip(digests, has_terms.tolist(), strict=True) if has]
        found = {"loss": add_up(scored, losses[has_terms].tolist())}
        if self._outcomes:
            name, values = _judge_rows(self.unit, torch.cat(self._outcomes))
            found[name] = add_up(scored, [[value, 1.0] for value in values])
        return found


def add_up(digests: list[int], rows: list[list[float]]) -> Sums:
    """Add up the rows of each example: of the pieces of a long text, and of equal rows."""
    sums: Sums = {}
    for digest, row in zip(digests, rows, strict=True):
        before = sums.get(digest)
        sums[digest] = row if before is None else [a + b for a, b in zip(before, row, strict=True)]
    return sums


def _sum_parts(by_row: torch.Tensor, batch: Batch) -> torch.Tensor | None:
    if batch.sources is None:
        return None
    sums = by_row.new_zeros(batch.num_sources, 2)
    # A row is of one part, but padding is of part 0.
    return sums.index_add_(0, batch.sources.amax(1), by_row)


def _judge_rows(unit: str, outcomes: torch.Tensor) -> tuple[str, list[float]]:
    predicted, right = outcomes.chunk(2, dim=1)
    if unit == "labels":
        return "accuracy", (predicted == right).all(1).double().tolist()
    values: Any = (predicted - right).abs().mean(1).tolist()
    return "mae", values

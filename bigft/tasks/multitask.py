"""Several tasks at once: one body reads the rows of all, and each task has a head of its own.

The loss of a step is the sum over the tasks of `weight` times the mean over the task's terms in the
whole global batch; a task without a term in a step adds nothing to it. So it depends neither on
ranks nor on accumulation. That of an evaluation is the same sum over all held-out rows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from bigft.data.loading.collate import Batch
from bigft.models.shared import Head
from bigft.tasks.rows import SeveralRows, TaskRows
from bigft.tasks.section import TaskSection
from bigft.tasks.task import Forward, LoadFrozen, LossSum, Score, Task, Totals, build_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Member:
    """One of the tasks."""

    task: Task
    weight: float


def build(section: TaskSection, rows: SeveralRows) -> "MultiTask":
    """Build the tasks, each as if it were alone."""
    members = {
        name: Member(build_task(part.to_section(), rows.parts[name]), part.weight)
        for name, part in section.parts.items()
    }
    return MultiTask(members, rows)


class MultiTask:
    """Tasks that share a body."""

    unit = "terms"
    has_new_head = True

    def __init__(self, members: Mapping[str, Member], rows: TaskRows) -> None:
        """Take the tasks by the names of the parts of the data, in their order."""
        self.rows = rows
        self._members = list(members.values())
        self._tasks = {name: member.task for name, member in members.items()}
        self._widths: list[int] = []

    def list_heads(self, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Head]:
        """Say what the model has to have behind its body, by the names of the tasks."""
        return {name: Head.of(task, tokenizer) for name, task in self._tasks.items()}

    def auto_class(self) -> Any:
        """Return that of the first task; see `list_heads`."""
        return self._members[0].task.auto_class()

    def configure(self, config: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Configure for the first task; see `list_heads`."""
        self._members[0].task.configure(config, tokenizer)

    def prepare(self, load_frozen: LoadFrozen) -> None:
        """Do nothing."""

    def loss(self, forward: Forward, batch: Batch) -> LossSum:
        """Sum the losses of one micro-batch, weighted so that the step's loss is as above."""
        found: list[LossSum] = []
        every = sum(batch.step_terms)
        # The loop divides by the terms of all tasks; each task has to be divided by its own.
        scales = [
            member.weight * every / terms if terms else 0.0
            for member, terms in zip(self._members, batch.step_terms, strict=True)
        ]

        def compute(heads: Sequence[Forward]) -> Tensor:
            parts = zip(self._members, heads, batch.parts, strict=True)
            found.extend(member.task.loss(head, part) for member, head, part in parts)
            scaled = [loss.total * scale for loss, scale in zip(found, scales, strict=True)]
            return torch.stack(scaled).sum()

        total = _run(forward, batch, compute)
        sums = [[loss.total.detach(), total.new_tensor(loss.tokens)] for loss in found]
        by_source = torch.stack([torch.stack(row) for row in sums])
        return LossSum(total, sum(loss.tokens for loss in found), by_source)

    @torch.no_grad()
    def score(self, forward: Forward, batch: Batch) -> Score:
        """Score the rows of each task as it does."""
        found: list[Score] = []

        def compute(heads: Sequence[Forward]) -> Tensor:
            parts = zip(self._members, heads, batch.parts, strict=True)
            found.extend(member.task.score(head, part) for member, head, part in parts)
            return torch.zeros(())

        _run(forward, batch, compute)
        sums = torch.tensor([[score.loss, score.tokens] for score in found], dtype=torch.float64)
        outcomes, self._widths = _stack_outcomes(found, batch)
        return Score(
            math.fsum(score.loss for score in found),
            sum(score.correct for score in found),
            sum(score.tokens for score in found),
            sums,
            outcomes,
        )

    def judge(self, totals: Totals) -> dict[str, float]:
        """Return the metrics of one task from its rows; of all, the loss as of a step."""
        if totals.source is None:
            sums = zip(self._members, totals.by_source, strict=True)
            means = (member.weight * loss / terms for member, (loss, terms) in sums if terms)
            return {"loss": math.fsum(means)}
        task = self._members[totals.source].task
        outcomes = totals.outcomes[:, : self._widths[totals.source]]
        if task.unit == "tokens":
            hits, tokens = outcomes.sum(0).tolist()
            totals = replace(totals, accuracy=hits / max(tokens, 1.0))
        return task.judge(replace(totals, outcomes=outcomes))


def _run(forward: Forward, batch: Batch, compute: Any) -> Tensor:
    total: Tensor = forward(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        token_type_ids=batch.token_type_ids,
        spans=batch.spans,
        compute=compute,
    )
    return total


def _stack_outcomes(found: Sequence[Score], batch: Batch) -> tuple[Tensor, list[int]]:
    """Lay the outcomes of all rows one below the other, `(rows, n)`; return also their widths.

    Of a task that predicts tokens the first row has hits and tokens of all its rows.
    """
    numbers = batch.sources[batch.labels == 0] if batch.sources is not None else batch.labels[:0]
    counts = torch.bincount(numbers.flatten(), minlength=len(found)).tolist()
    tables = []
    for score, count in zip(found, counts, strict=True):
        table = score.outcomes
        if table is None:
            table = batch.input_ids.new_zeros(count, 2)
            table[:1] = table.new_tensor([score.correct, score.tokens])
        tables.append(table.double())
    widths = [table.shape[1] for table in tables]
    wide = [functional.pad(table, (0, max(widths) - table.shape[1])) for table in tables]
    return torch.cat(wide), widths

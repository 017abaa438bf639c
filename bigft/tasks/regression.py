"""Predict one number or several from a text."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bigft.data.loading.collate import Batch, find_learned
from bigft.tasks.heads import compute_head, configure_padding, get_sequence_classifier
from bigft.tasks.rows import TaskRows, ValueRows
from bigft.tasks.section import TaskSection
from bigft.tasks.task import Forward, LoadFrozen, LossSum, Score, Totals
from bigft.tasks.tokens import sum_by_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build(section: TaskSection, rows: ValueRows) -> "Regression":
    """Build the task; it has no settings."""
    return Regression(rows)


class Regression:
    """Squared error, a mean over rows and numbers."""

    unit = "numbers"
    has_new_head = True

    def __init__(self, rows: ValueRows) -> None:
        """Take how many numbers each row has."""
        self.rows: TaskRows = rows
        self._size = rows.size

    def auto_class(self) -> Any:
        """Return `AutoModelForSequenceClassification`, as transformers does it."""
        return get_sequence_classifier()

    def configure(self, config: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Write down the number of numbers."""
        config.num_labels = self._size
        config.problem_type = "regression"
        configure_padding(config, tokenizer)

    def prepare(self, load_frozen: LoadFrozen) -> None:
        """Do nothing."""

    def loss(self, forward: Forward, batch: Batch) -> LossSum:
        """Sum the squared errors of one micro-batch."""
        predicted = compute_head(forward, batch)
        losses, sources = _square_errors(predicted, batch)
        # The head takes part on every rank, also where a rank has nothing but padding.
        total = losses.sum() + 0.0 * predicted.sum()
        return LossSum(total, len(losses), sum_by_source(losses, sources, batch.num_sources))

    @torch.no_grad()
    def score(self, forward: Forward, batch: Batch) -> Score:
        """Sum the squared errors, and keep predictions beside labels."""
        predicted = compute_head(forward, batch)
        losses, sources = _square_errors(predicted, batch)
        rows = find_learned(batch.labels).all(1)
        outcomes = torch.cat([predicted, batch.labels], 1)[rows]
        by_source = sum_by_source(losses, sources, batch.num_sources)
        return Score(float(losses.sum()), 0, len(losses), by_source, outcomes)

    def judge(self, totals: Totals) -> dict[str, float]:
        """Return errors and correlations, means over the numbers where there are several."""
        from bigft.tasks.metrics import judge_numbers

        predicted, right = totals.outcomes.split(self._size, dim=1)
        return judge_numbers(predicted.numpy(), right.numpy())


def _square_errors(predicted: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
    learned = find_learned(batch.labels)
    errors = predicted[learned] - batch.labels[learned]
    sources = None if batch.sources is None else batch.sources[learned]
    return errors.square(), sources

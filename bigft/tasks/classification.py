"""Choose one label of a text or a pair of texts, or any number of labels."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from bigft.data.loading.collate import Batch, find_learned
from bigft.tasks.heads import compute_head, configure_padding, get_sequence_classifier
from bigft.tasks.rows import ClassRows, TaskRows
from bigft.tasks.section import TaskSection
from bigft.tasks.task import Forward, LoadFrozen, LossSum, Score, Totals
from bigft.tasks.tokens import sum_by_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = TaskSection(name="classification")
"""Cross-entropy and nothing else."""

_LEAST_DOUBT = 1e-6
"""Below it, focal losses with gamma < 1 would have endless gradients."""


def build(section: TaskSection, rows: ClassRows) -> "Classification":
    """Build the task."""
    return Classification(rows, section)


class Classification:
    """Cross-entropy over classes, or binary cross-entropy over each of several labels."""

    unit = "labels"
    has_new_head = True

    def __init__(self, rows: ClassRows, section: TaskSection = PLAIN) -> None:
        """Take the classes, and the form of the loss."""
        self.rows: TaskRows = rows
        self._section = section
        self._names = list(rows.classes.names)
        self._is_multiple = rows.classes.is_multiple
        weights = rows.classes.weights
        self._weights = None if weights is None else torch.tensor(weights)

    def auto_class(self) -> Any:
        """Return `AutoModelForSequenceClassification`."""
        return get_sequence_classifier()

    def configure(self, config: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Write down the classes."""
        config.id2label = dict(enumerate(self._names))
        config.label2id = {name: number for number, name in enumerate(self._names)}
        kind = "multi_label" if self._is_multiple else "single_label"
        config.problem_type = f"{kind}_classification"
        configure_padding(config, tokenizer)

    def prepare(self, load_frozen: LoadFrozen) -> None:
        """Do nothing."""

    def loss(self, forward: Forward, batch: Batch) -> LossSum:
        """Sum the cross-entropy of one micro-batch."""
        logits = compute_head(forward, batch)
        losses, sources = self._measure(logits, batch, is_training=True)
        # The head takes part on every rank, also where a rank has nothing but padding.
        total = losses.sum() + 0.0 * logits.sum()
        return LossSum(total, len(losses), sum_by_source(losses, sources, batch.num_sources))

    @torch.no_grad()
    def score(self, forward: Forward, batch: Batch) -> Score:
        """Sum the plain cross-entropy, and keep predictions beside labels."""
        logits = compute_head(forward, batch)
        losses, sources = self._measure(logits, batch, is_training=False)
        rows = find_learned(batch.labels).all(1)
        predicted = (logits > 0).long() if self._is_multiple else logits.argmax(1, keepdim=True)
        outcomes = torch.cat([predicted, batch.labels], 1)[rows]
        correct = int((predicted == batch.labels)[rows].sum())
        by_source = sum_by_source(losses, sources, batch.num_sources)
        return Score(float(losses.sum()), correct, len(losses), by_source, outcomes)

    def judge(self, totals: Totals) -> dict[str, float]:
        """Return accuracy, F1 and what else people ask of classifiers."""
        from bigft.tasks.metrics import judge_classes, judge_many

        size = len(self._names) if self._is_multiple else 1
        predicted, right = (part.long().numpy() for part in totals.outcomes.split(size, dim=1))
        if self._is_multiple:
            return judge_many(predicted, right)
        return judge_classes(predicted[:, 0], right[:, 0], len(self._names))

    def _measure(
        self, logits: Tensor, batch: Batch, *, is_training: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the losses of all labels that count, `(N,)`, and their sources."""
        learned = find_learned(batch.labels)
        sources = None if batch.sources is None else batch.sources[learned]
        targets = batch.labels[learned]
        weights = None
        if is_training and self._weights is not None:
            weights = self._weights.to(logits.device)
        if self._is_multiple:
            losses = functional.binary_cross_entropy_with_logits(
                logits, batch.labels.clamp(min=0).float(), pos_weight=weights, reduction="none"
            )
            return losses[learned], sources
        logits = logits[learned[:, 0]]
        losses = self._measure_one(logits, targets, is_training=is_training)
        return losses if weights is None else losses * weights[targets], sources

    def _measure_one(self, logits: Tensor, targets: Tensor, *, is_training: bool) -> Tensor:
        smoothing = self._section.label_smoothing if is_training else 0.0
        gamma = self._section.focal_gamma if is_training else 0.0
        losses = functional.cross_entropy(
            logits, targets, label_smoothing=smoothing, reduction="none"
        )
        if gamma:
            doubt = (-torch.expm1(-losses)).clamp(min=_LEAST_DOUBT)
            losses = losses * doubt**gamma
        return losses

"""Choose one label of a text or a pair of texts, or any number of labels."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from bigft.data.labels import Labels, find_labels
from bigft.data.layouts.coders import ManyClasses, OneClass, name_class
from bigft.data.layouts.layout import Layout
from bigft.data.layouts.targets import Targets
from bigft.data.loading.collate import Batch, find_learned
from bigft.data.section import DataSection
from bigft.errors import ConfigError
from bigft.tasks.heads import compute_head, configure_padding, get_sequence_classifier
from bigft.tasks.section import TaskSection
from bigft.tasks.task import Forward, LossSum, Score, Totals
from bigft.tasks.tokens import sum_by_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LEAST_DOUBT = 1e-6
"""Below it, focal losses with gamma < 1 would have endless gradients."""


def build(
    section: TaskSection, data: DataSection, model_config: Mapping[str, Any]
) -> "Classification":
    """Build the task for the labels that were named, that the model has, or that the data have.

    Raises:
        ConfigError: Settings do not go with rows that have several labels.
        DataError: The data are missing, or no row has a label.
    """
    if section.labels is not None and data.loading.streaming:
        return Classification(section, section.labels, is_multiple=False, weights=None)
    found = find_labels(data)
    own = list_classes(model_config)
    knows_all = set(found.counts) <= set(own)
    names = section.labels or (own if knows_all else list(found.counts))
    was_multiple = model_config.get("problem_type") == "multi_label_classification"
    return Classification(
        section,
        names,
        is_multiple=found.is_multiple or (names == own and was_multiple),
        weights=balance(found, names) if section.class_weights == "balanced" else None,
    )


def list_classes(model_config: Mapping[str, Any]) -> list[str]:
    """List the classes that a model knows, by number; placeholders become their numbers."""
    own = model_config.get("id2label") or {}
    named = [name_class(own[key]) for key in sorted(own, key=int)]
    numbers = [str(number) for number in range(len(named))]
    return numbers if named == [f"LABEL_{number}" for number in numbers] else named


def balance(found: Labels, names: Sequence[str]) -> list[float]:
    """Weigh classes so that each counts alike.

    Returns:
        One label per row: rows / (classes x rows of the class), whose mean over the rows is 1.
        Several: rows without the label / rows with it, for its positive term.
    """
    counts = [found.counts.get(name, 0) for name in names]
    if found.is_multiple:
        return [(found.num_rows - count) / max(count, 1) for count in counts]
    return [found.num_rows / (len(names) * max(count, 1)) for count in counts]


class Classification:
    """Cross-entropy over classes, or binary cross-entropy over each of several labels."""

    unit = "labels"
    has_new_head = True

    def __init__(
        self,
        section: TaskSection,
        names: Sequence[str],
        *,
        is_multiple: bool,
        weights: Sequence[float] | None,
    ) -> None:
        """Take the classes.

        Args:
            section: Form of the loss.
            names: Of the classes, by number.
            is_multiple: Whether a row may have several labels, or none.
            weights: Of each class; see `balance`.

        Raises:
            ConfigError: A form of the loss that several labels per row do not have.
        """
        self._section = section
        self._names = list(names)
        self._is_multiple = is_multiple
        self._weights = None if weights is None else torch.tensor(weights)
        if is_multiple and (section.label_smoothing or section.focal_gamma):
            raise ConfigError(
                "--task.label_smoothing and --task.focal_gamma are for one label per row; these"
                " data have lists of labels. Leave them out"
            )
        if len(self._names) < 2 and not is_multiple:
            raise ConfigError(
                f"--task classification: all rows have the label {self._names[0]!r}; give data with"
                " two classes or more, or name them with --task.labels"
            )

    def auto_class(self) -> Any:
        """Return `AutoModelForSequenceClassification`."""
        return get_sequence_classifier()

    def complete(self, tokenizer: "PreTrainedTokenizerBase", *, is_new: bool) -> None:
        """Do nothing."""

    def configure(self, config: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Write down the classes."""
        config.id2label = dict(enumerate(self._names))
        config.label2id = {name: number for number, name in enumerate(self._names)}
        kind = "multi_label" if self._is_multiple else "single_label"
        config.problem_type = f"{kind}_classification"
        configure_padding(config, tokenizer)

    def lay_out(self, tokenizer: "PreTrainedTokenizerBase", section: DataSection) -> Layout:
        """Return rows of a text and its label."""
        coder = ManyClasses(self._names) if self._is_multiple else OneClass(self._names)
        return Targets(tokenizer, section, coder)

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

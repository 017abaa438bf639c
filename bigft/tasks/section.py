"""Settings of the task."""

from typing import Annotated, Literal

from pydantic import Field

from bigft.config.section import Section

Share = Annotated[float, Field(ge=0, lt=1)]


class DistillationSection(Section):
    """What a student learns from its teacher."""

    teacher: str = ""
    """Folder or hub id of a trained model with the same tokenizer."""

    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Softens both distributions before they are compared (Hinton et al., arXiv 1503.02531)."""

    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the divergence from the teacher in the loss; the rest is cross-entropy."""

    top_k: Annotated[int, Field(gt=0)] | None = None
    """Compare with the teacher's so many most likely tokens, and with all others as one; absent:
    with its whole vocabulary."""

    logits: str | None = None
    """Folder that keeps the teacher's `top_k` log-probabilities, 6 bytes each: filled before the
    first step by the first run, read by it and all later ones, which load no teacher. All hosts
    have to see it. Absent: the teacher is asked in every step."""


class TaskSection(Section):
    """What the model learns."""

    name: Literal[
        "causal_lm", "classification", "regression", "seq2seq", "masked_lm", "distillation"
    ] = "causal_lm"
    """`causal_lm`: predict the next token. `classification`: choose a label, or several.
    `regression`: predict numbers. `seq2seq`: write a target text from a source text (T5, BART).
    `masked_lm`: guess hidden tokens (BERT). `distillation`: predict the next token as a teacher
    does."""

    labels: list[str] | None = None
    """`classification`: names of the classes in the order of their numbers; absent: the model's own
    where they fit, else those found in the training data, sorted."""

    class_weights: Literal["none", "balanced"] = "none"
    """`classification`: `balanced` lets every class count alike, however many rows it has."""

    label_smoothing: Share = 0.0
    """Share of the target probability that is spread over all classes or tokens (Szegedy et al.,
    arXiv 1512.00567). In training only: evaluation losses stay comparable."""

    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared logarithm of the softmax's denominator, which keeps logits from
    drifting (Chowdhery et al., arXiv 2204.02311; 1e-4 there). Language models, training only."""

    focal_gamma: Annotated[float, Field(ge=0)] = 0.0
    """How much less what is already predicted well counts (Lin et al., arXiv 1708.02002; 2 there).
    Training only."""

    prefix: str = ""
    """`seq2seq`: text before every source, as `"translate English to German: "` for T5."""

    mask_share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """`masked_lm`: share of the tokens that are hidden, anew in every epoch."""

    mask_unit: Literal["token", "word"] = "token"
    """`masked_lm`: hide single tokens, or whole words."""

    distillation: DistillationSection = DistillationSection()


OF_ONE_TASK: dict[str, tuple[str, ...]] = {
    "labels": ("classification",),
    "class_weights": ("classification",),
    "label_smoothing": ("causal_lm", "classification", "seq2seq", "masked_lm"),
    "z_loss": ("causal_lm", "seq2seq", "masked_lm"),
    "focal_gamma": ("causal_lm", "classification", "seq2seq", "masked_lm"),
    "prefix": ("seq2seq",),
    "mask_share": ("masked_lm",),
    "mask_unit": ("masked_lm",),
    "distillation": ("distillation",),
}
"""Setting -> the tasks that have it."""

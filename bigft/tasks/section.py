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


class LearningSection(Section):
    """What may be chosen for a task, also for one of several."""

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

    mask_share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """`masked_lm`: share of the tokens that are hidden, anew in every epoch."""

    mask_unit: Literal["token", "word"] = "token"
    """`masked_lm`: hide single tokens, or whole words."""


class TaskPart(LearningSection):
    """One of several tasks that share a body; beside these settings those of its task."""

    task: Literal["classification", "regression", "causal_lm", "masked_lm"]
    """What this head learns."""

    data: str
    """File, folder, glob or hub id, with an optional `:weight` (share of the tokens)."""

    eval: str | None = None
    """As `data`, without a weight; absent: a held-out share of `data`."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    """What the mean loss of this task is multiplied by before the losses are added up."""

    def to_section(self) -> "TaskSection":
        """Return the settings of this task as if it were alone."""
        own = {name: getattr(self, name) for name in LearningSection.model_fields}
        return TaskSection(name=self.task, **own)


PartName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]


class TaskSection(LearningSection):
    """What the model learns."""

    name: Literal[
        "causal_lm",
        "classification",
        "regression",
        "seq2seq",
        "masked_lm",
        "distillation",
        "multitask",
    ] = "causal_lm"
    """`causal_lm`: predict the next token. `classification`: choose a label, or several.
    `regression`: predict numbers. `seq2seq`: write a target text from a source text (T5, BART).
    `masked_lm`: guess hidden tokens (BERT). `distillation`: predict the next token as a teacher
    does. `multitask`: several of these at once, with a head for each."""

    prefix: str = ""
    """`seq2seq`: text before every source, as `"translate English to German: "` for T5."""

    distillation: DistillationSection = DistillationSection()

    parts: dict[PartName, TaskPart] = {}
    """`multitask`: a name for each task, and what it is: `task` (`classification`, `regression`,
    `causal_lm` or `masked_lm`), `data`, and where wanted `eval`, `weight` and the settings above.
    Written in a recipe; single values also as `--task.parts.NAME.weight 0.5`."""


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
    "parts": ("multitask",),
}
"""Setting -> the tasks that have it."""

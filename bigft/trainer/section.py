"""Settings of the training loop."""

from typing import Annotated, Literal

from pydantic import Field

from bigft.config.section import Section


class ReptileSection(Section):
    """Meta-learning: weights from which few steps are enough (Nichol et al., arXiv 1803.02999)."""

    inner_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps on one part of `--data` after the other, each part a task of its own; then
    the weights go back to where they started, but for a share of the way. 0: no meta-learning."""

    outer_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    """That share of the way, which is kept."""

    outer_schedule: Literal["linear", "constant"] = "linear"
    """`linear`: the share falls to 0 over the run."""


class TrainerSection(Section):
    """How long training goes on and how much one step sees."""

    num_train_epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the training data; a fraction is allowed."""

    max_steps: Annotated[int, Field(gt=0)] | None = None
    """Optimizer steps; when given, it overrides `num_train_epochs`."""

    per_device_train_batch_size: Annotated[int, Field(gt=0)] = 1
    """Sequences per rank in one forward pass (DeepSpeed's micro-batch)."""

    gradient_accumulation_steps: Annotated[int, Field(gt=0)] = 1
    """Forward and backward passes per optimizer step."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of the initial weights, the data order and dropout."""

    early_stopping: str | None = None
    """`METRIC:PATIENCE`, such as `loss:3` or `eval_f1_macro:5`: end the run after so many
    evaluations (`--eval_steps`) without a better value of this metric, by its name in
    `metrics.jsonl`. Losses, perplexity and errors are better when smaller, everything else when
    larger. With `--save_steps` a multiple of `--eval_steps`, the model of the best checkpoint is
    exported (`--checkpoint.best`)."""

    max_skipped_in_a_row: Annotated[int, Field(gt=0)] = 20
    """The run stops when this many steps in a row had gradients that are not finite."""

    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of an exponential moving average of the weights over the steps, such as 0.999, which
    averages over about the last 1 / (1 - decay) steps; 0: none. It takes 4 bytes per parameter of
    host memory, and is what is evaluated and exported."""

    reptile: ReptileSection = ReptileSection()

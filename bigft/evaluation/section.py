"""Settings of evaluation."""

from typing import Annotated

from pydantic import Field

from bigft.config.section import Section


class EvaluationSection(Section):
    """When the held-out data are scored."""

    eval_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps between evaluations; 0 evaluates only at the end (and at the
    start, see `eval_on_start`)."""

    eval_on_start: bool = True
    """Evaluate before the first step: gives the baseline, and finds a broken evaluation early."""

    per_device_eval_batch_size: Annotated[int, Field(gt=0)] = 1
    """Sequences per rank in one forward pass of an evaluation."""

    max_eval_batches: Annotated[int, Field(gt=0)] | None = None
    """Forward passes per rank and evaluation; absent: all held-out data."""

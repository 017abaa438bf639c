"""Settings of evaluation."""

from typing import Annotated, Literal

from pydantic import Field

from bigft.config.section import Section


class EvaluationSection(Section):
    """When the held-out data are scored, and how."""

    eval_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps between evaluations; 0 evaluates only at the end (and at the
    start, see `eval_on_start`)."""

    eval_on_start: bool = True
    """Evaluate before the first step: gives the baseline, and finds a broken evaluation early."""

    per_device_eval_batch_size: Annotated[int, Field(gt=0)] = 1
    """Sequences per rank in one forward pass of an evaluation."""

    max_eval_batches: Annotated[int, Field(gt=0)] | None = None
    """Forward passes per rank and evaluation; absent: all held-out data."""

    metrics: list[Literal["bleu", "chrf", "rouge", "exact_match", "f1"]] = []
    """Let the model answer some of the held-out prompts at each evaluation, and compare: BLEU,
    chrF, ROUGE, or SQuAD's exact match and F1. Absent: none. Needs `pip install "bigft[eval]"`."""

    generate_rows: Annotated[int, Field(gt=0)] = 64
    """Examples to answer at each evaluation: those with the smallest hashes of what they say, so
    the same ones each time, whatever the number of ranks."""

    generate_seconds: Annotated[float, Field(gt=0)] | None = 60.0
    """Begin no further batch of answers after so long, and score what is written; the first batch
    is always written. `none`: write all."""

    max_new_tokens: Annotated[int, Field(gt=0)] = 64
    """Tokens of an answer at most; each is one forward pass, which under ZeRO stage 3 gathers every
    parameter."""

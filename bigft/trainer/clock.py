"""How long a run is, in optimizer steps."""

import math

from bigft.trainer.section import TrainerSection


def count_total_steps(section: TrainerSection, steps_per_epoch: int | None) -> int:
    """Count the optimizer steps of the whole run; `max_steps` overrides the epochs."""
    if section.max_steps is not None:
        return section.max_steps
    assert steps_per_epoch is not None, "streamed data have max_steps, as run/rules.py demands"
    return max(1, math.ceil(section.num_train_epochs * steps_per_epoch))

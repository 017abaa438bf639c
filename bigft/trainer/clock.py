"""How long a run is, in optimizer steps."""

import math

from bigft.trainer.section import TrainerSection


def count_total_steps(section: TrainerSection, steps_per_epoch: int | None) -> int:
    """Count the optimizer steps of the whole run; `max_steps` overrides the epochs.

    With Reptile, epochs are filled up to whole rounds of its inner steps.
    """
    if section.max_steps is not None:
        return section.max_steps
    assert steps_per_epoch is not None, "streamed data have max_steps, as run/rules.py demands"
    grain = max(1, section.reptile.inner_steps)
    return max(1, math.ceil(section.num_train_epochs * steps_per_epoch / grain)) * grain

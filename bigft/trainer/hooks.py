"""Hooks watch the loop and act between steps; they never change the mathematics."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from bigft.data.loading.loader import Samples
from bigft.engine.engine import StepResult
from bigft.monitor.meters import PhaseClock
from bigft.trainer.state import State


@dataclass(frozen=True)
class StepReport:
    """What the loop knows about the step it just took, on this rank."""

    loss_sum: Tensor
    """Scalar fp32 on the device: this rank's sum of token losses."""
    supervised_tokens: int
    """Of the whole global batch."""
    tokens: int
    """Of the whole global batch, without padding."""
    seconds: float
    """Wall time of the step, data included."""
    result: StepResult
    clock: PhaseClock
    by_source: Tensor | None = None
    """`(num_sources, 2)`: this rank's loss and supervised tokens of each part of the data."""
    losses: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    """`(world_size, micro_batches)` fp32 on the CPU: sums of token losses, of all ranks."""
    samples: Samples | None = None
    """The raw rows of the step, by name."""


class Hook(Protocol):
    """Called on every rank, in the same order, so that hooks may use collectives."""

    def started(self, state: State, total_steps: int) -> None:
        """Before the first step; `state` may come from a checkpoint."""

    def stepped(self, state: State, report: StepReport) -> None:
        """After every optimizer step."""

    def finished(self, state: State) -> None:
        """After the last step."""


def is_due(step: int, every: int, total_steps: int) -> bool:
    """Whether something that happens every `every` steps happens now; 0 means only at the end."""
    return step == total_steps or (every > 0 and step % every == 0)

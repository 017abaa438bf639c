"""The seam between the loop and what is learned."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from torch import Tensor

from bigft.data.loading.collate import Batch

Forward = Callable[..., Any]
"""A model's forward pass: a DeepSpeed engine or a plain transformers module."""


@dataclass(frozen=True)
class LossSum:
    """A loss that is not yet a mean, so that it adds up over micro-batches and ranks."""

    total: Tensor
    """Scalar fp32, sum of the token losses of one micro-batch."""
    tokens: int
    """Supervised tokens in it."""
    by_source: Tensor | None = None
    """`(num_sources, 2)` fp32 without gradient: loss and supervised tokens of each part of the
    data; None when there is one part."""


@dataclass(frozen=True)
class Score:
    """What an evaluation adds up over batches."""

    loss: float
    correct: int
    tokens: int
    by_source: Tensor | None = None
    """As in `LossSum`."""


class Task(Protocol):
    """What a model learns; the loop knows nothing else about it."""

    def auto_class(self) -> Any:
        """Return the transformers auto class that builds the model."""

    def loss(self, forward: Forward, batch: Batch) -> LossSum:
        """Return the summed loss of one micro-batch, with gradient."""

    def score(self, forward: Forward, batch: Batch) -> Score:
        """Return summed loss and hits of one micro-batch, without gradient."""


TASKS = {"causal_lm": "bigft.tasks.causal_lm:CausalLM"}
"""Name -> `module:class`, loaded when asked for."""


def build_task(name: str) -> Task:
    """Build the task of this name; the names are held by `TaskSection`."""
    module, _, attribute = TASKS[name].partition(":")
    task: Task = getattr(import_module(module), attribute)()
    return task

"""The seam between the loop and what is learned."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from bigft.data.loading.collate import Batch
from bigft.tasks.divergence import Brief
from bigft.tasks.rows import TaskRows
from bigft.tasks.section import TaskSection
from bigft.tasks.stored import Question, StoredTeacher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Forward = Callable[..., Any]
"""A model's forward pass: a DeepSpeed engine or a plain transformers module."""

Ask = Callable[[Forward, Batch], Brief]
"""What a model says of the learned tokens of a batch."""


class LoadFrozen(Protocol):
    """Makes trained models ready that a task asks beside its own."""

    @property
    def num_tokens(self) -> int:
        """Count the tokens that they share with the task's model."""

    def __call__(self, name: str, /) -> Forward:
        """Load one, for forward passes without gradients. Collective: every rank."""

    def open_stored(self, name: str, folder: str, question: Question, ask: Ask) -> StoredTeacher:
        """Open what one says of every row of the data; ask it first where that was not done.

        Collective: every rank.
        """


@dataclass(frozen=True)
class LossSum:
    """A loss that is not yet a mean, so that it adds up over micro-batches and ranks."""

    total: Tensor
    """Scalar fp32, sum of the losses of all terms of one micro-batch."""
    tokens: int
    """Terms: supervised tokens, labels, or numbers to be predicted."""
    by_source: Tensor | None = None
    """`(num_sources, 2)` fp32 without gradient: loss and terms of each part of the data; None when
    there is one part."""


@dataclass(frozen=True)
class Score:
    """What an evaluation adds up over batches."""

    loss: float
    correct: int
    tokens: int
    """Terms, as in `LossSum`."""
    by_source: Tensor | None = None
    """As in `LossSum`."""
    outcomes: Tensor | None = None
    """`(rows, n)`: what was predicted beside what was right, where metrics need all rows at once;
    which number is what, the task knows."""


@dataclass(frozen=True)
class Totals:
    """What an evaluation has added up, over all batches and ranks."""

    loss: float
    """Mean over the terms."""
    accuracy: float
    """Share of the terms that were predicted correctly."""
    outcomes: Tensor
    """`(rows, n)` fp64 on the CPU, of all rows."""
    by_source: tuple[tuple[float, float], ...] = ()
    """Loss and terms of each part of the data, where there are several."""
    source: int | None = None
    """Of which part of the data these are; None: of all. Then there is no `accuracy`."""


class Task(Protocol):
    """What a model learns; the loop knows nothing else about it."""

    unit: str
    """What the loss is a mean over: `tokens`, `labels` or `numbers`."""

    rows: TaskRows
    """How it reads the data."""

    has_new_head: bool
    """Whether weights may lack the last layers, which then start from random ones."""

    def auto_class(self) -> Any:
        """Return the transformers auto class that builds the model."""

    def configure(self, config: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Write into a model's config what the task decides, before the model is built."""

    def prepare(self, load_frozen: LoadFrozen) -> None:
        """Load what is asked beside the model. Collective: every rank."""

    def loss(self, forward: Forward, batch: Batch) -> LossSum:
        """Return the summed loss of one micro-batch, with gradient."""

    def score(self, forward: Forward, batch: Batch) -> Score:
        """Return summed loss, hits and outcomes of one micro-batch, without gradient."""

    def judge(self, totals: Totals) -> dict[str, float]:
        """Return the metrics of an evaluation beside its loss."""


TASKS = {
    "causal_lm": "bigft.tasks.causal_lm:build",
    "classification": "bigft.tasks.classification:build",
    "regression": "bigft.tasks.regression:build",
    "seq2seq": "bigft.tasks.seq2seq:build",
    "masked_lm": "bigft.tasks.masked_lm:build",
    "distillation": "bigft.tasks.distillation:build",
    "multitask": "bigft.tasks.multitask:build",
}
"""Name -> `module:function`, loaded when asked for."""


def find_task(model_config: Mapping[str, Any]) -> str:
    """Say what a model was made for, from its `config.json`."""
    (name, *_) = model_config.get("architectures") or [""]
    if name.endswith("ForSequenceClassification"):
        is_regression = model_config.get("problem_type") == "regression"
        return "regression" if is_regression else "classification"
    if name.endswith("ForMaskedLM"):
        return "masked_lm"
    return "seq2seq" if model_config.get("is_encoder_decoder") else "causal_lm"


def build_task(section: TaskSection, rows: TaskRows) -> Task:
    """Build a task.

    Args:
        section: Names the task and has its settings.
        rows: What `build_rows` made of the same settings.
    """
    module, _, function = TASKS[section.name].partition(":")
    task: Task = getattr(import_module(module), function)(section, rows)
    return task

"""Learn to predict the next token from the text and from a larger model that has read it."""

from typing import TYPE_CHECKING, Any

import torch

from bigft.data.loading.collate import Batch
from bigft.tasks.causal_lm import CausalLM
from bigft.tasks.divergence import Mixture, sum_distillation
from bigft.tasks.rows import NextTokenRows, TaskRows
from bigft.tasks.section import TaskSection
from bigft.tasks.task import Forward, LoadFrozen, LossSum, Score, Totals
from bigft.tasks.tokens import make_losses, sum_by_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build(section: TaskSection, rows: NextTokenRows) -> "Distillation":
    """Build the task; all such rows are alike."""
    settings = section.distillation
    mixture = Mixture(settings.temperature, settings.weight)
    return Distillation(rows, settings.teacher, mixture)


class Distillation:
    """Cross-entropy mixed with the divergence from a frozen teacher.

    An evaluation is that of `causal_lm`: how well the student predicts the text.
    """

    unit = "tokens"
    has_new_head = False

    def __init__(self, rows: NextTokenRows, teacher: str, mixture: Mixture) -> None:
        """Take the teacher's name, and how much it counts."""
        self.rows: TaskRows = rows
        self._name = teacher
        self._mixture = mixture
        self._student = CausalLM()
        # Another one: what a model's forward pass can do is remembered there.
        self._taught = CausalLM()
        self._teacher: Forward | None = None

    def auto_class(self) -> Any:
        """Return `AutoModelForCausalLM`."""
        return self._student.auto_class()

    def configure(self, config: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Do nothing."""

    def prepare(self, load_frozen: LoadFrozen) -> None:
        """Load the teacher. Collective: every rank."""
        self._teacher = load_frozen(self._name)

    def loss(self, forward: Forward, batch: Batch) -> LossSum:
        """Sum the mixture over the supervised tokens of one micro-batch."""
        assert self._teacher is not None, "`prepare` comes first"
        with torch.no_grad():
            taught = self._taught.predict(self._teacher, batch)
        own = self._student.predict(forward, batch)
        losses = make_losses(own)
        total = sum_distillation(own.logits, taught.logits, own.targets, losses, self._mixture)
        by_source = sum_by_source(losses, own.sources, own.num_sources)
        return LossSum(total, len(own.targets), by_source)

    def score(self, forward: Forward, batch: Batch) -> Score:
        """Sum loss and correctly predicted tokens of one micro-batch; the teacher is not asked."""
        return self._student.score(forward, batch)

    def judge(self, totals: Totals) -> dict[str, float]:
        """Return perplexity and token accuracy."""
        return self._student.judge(totals)

"""Learn to predict the next token from the text and from a larger model that has read it."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bigft.data.loading.collate import Batch
from bigft.tasks.causal_lm import CausalLM
from bigft.tasks.divergence import Brief, Mixture, shorten, sum_distillation
from bigft.tasks.rows import NextTokenRows, TaskRows
from bigft.tasks.section import DistillationSection, TaskSection
from bigft.tasks.stored import Question, StoredTeacher
from bigft.tasks.task import Forward, LoadFrozen, LossSum, Score, Totals
from bigft.tasks.tokens import make_losses, sum_by_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build(section: TaskSection, rows: NextTokenRows) -> "Distillation":
    """Build the task; all such rows are alike."""
    return Distillation(section.distillation, rows)


class Distillation:
    """Cross-entropy mixed with the divergence from a frozen teacher.

    An evaluation is that of `causal_lm`: how well the student predicts the text.
    """

    unit = "tokens"
    has_new_head = False

    def __init__(self, section: DistillationSection, rows: NextTokenRows) -> None:
        """Take who teaches, and how."""
        self.rows: TaskRows = rows
        self._section = section
        self._mixture = Mixture(section.temperature, section.weight)
        self._student = CausalLM()
        # Another one: what a model's forward pass can do is remembered there.
        self._taught = CausalLM()
        self._teacher: Forward | None = None
        self._stored: StoredTeacher | None = None
        self._num_tokens = 0

    def auto_class(self) -> Any:
        """Return `AutoModelForCausalLM`."""
        return self._student.auto_class()

    def configure(self, config: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Do nothing."""

    def prepare(self, load_frozen: LoadFrozen) -> None:
        """Load the teacher, or open what it said before. Collective: every rank."""
        section = self._section
        self._num_tokens = load_frozen.num_tokens
        if section.logits is None or section.top_k is None:
            self._teacher = load_frozen(section.teacher)
            return
        count = min(section.top_k, self._num_tokens - 1)
        question = Question(count, section.temperature, self._num_tokens)
        self._stored = load_frozen.open_stored(section.teacher, section.logits, question, self._ask)

    def loss(self, forward: Forward, batch: Batch) -> LossSum:
        """Sum the mixture over the supervised tokens of one micro-batch."""
        taught = self._hear(batch)
        own = self._student.predict(forward, batch)
        losses = make_losses(own)
        total = sum_distillation(own.logits, taught, own.targets, losses, self._mixture)
        by_source = sum_by_source(losses, own.sources, own.num_sources)
        return LossSum(total, len(own.targets), by_source)

    def score(self, forward: Forward, batch: Batch) -> Score:
        """Sum loss and correctly predicted tokens of one micro-batch; the teacher is not asked."""
        return self._student.score(forward, batch)

    def judge(self, totals: Totals) -> dict[str, float]:
        """Return perplexity and token accuracy."""
        return self._student.judge(totals)

    def _hear(self, batch: Batch) -> Tensor | Brief:
        """Learn what the teacher says of the supervised tokens of a batch."""
        if self._stored is not None:
            return self._stored.load(batch.rows).to(batch.input_ids.device)
        assert self._teacher is not None, "`prepare` comes first"
        if self._section.top_k is not None:
            return self._ask(self._teacher, batch)
        with torch.no_grad():
            return self._taught.predict(self._teacher, batch).logits

    @torch.no_grad()
    def _ask(self, teacher: Forward, batch: Batch) -> Brief:
        assert self._section.top_k is not None
        taught = self._taught.predict(teacher, batch).logits
        return shorten(taught, self._section.top_k, self._mixture.temperature, self._num_tokens)

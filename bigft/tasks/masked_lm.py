"""Guess hidden tokens from those around them: continued pretraining of BERT and its kin."""

from typing import TYPE_CHECKING, Any

import torch

from bigft.data.loading.collate import Batch
from bigft.tasks.cross_entropy import PLAIN, LossForm
from bigft.tasks.rows import MaskedRows, TaskRows
from bigft.tasks.section import TaskSection
from bigft.tasks.task import Forward, LoadFrozen, LossSum, Score, Totals
from bigft.tasks.tokens import build_form, judge_tokens, pick_labels, score_tokens, sum_losses

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MASK = "<|mask|>"


def build(section: TaskSection, rows: MaskedRows) -> "MaskedLM":
    """Build the task."""
    return MaskedLM(rows, build_form(section))


class MaskedLM:
    """Cross-entropy over the hidden tokens."""

    unit = "tokens"
    has_new_head = False

    def __init__(self, rows: MaskedRows, form: LossForm = PLAIN) -> None:
        """Take how the data are read, and the form of the loss."""
        self.rows: TaskRows = rows
        self._form = form

    def auto_class(self) -> Any:
        """Return `AutoModelForMaskedLM`."""
        from transformers import AutoModelForMaskedLM

        return AutoModelForMaskedLM

    def configure(self, config: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Do nothing."""

    def prepare(self, load_frozen: LoadFrozen) -> None:
        """Do nothing."""

    def loss(self, forward: Forward, batch: Batch) -> LossSum:
        """Sum the cross-entropy over the hidden tokens of one micro-batch."""
        return sum_losses(pick_labels(_compute_logits(forward, batch), batch), self._form)

    @torch.no_grad()
    def score(self, forward: Forward, batch: Batch) -> Score:
        """Sum loss and correctly guessed tokens of one micro-batch."""
        return score_tokens(pick_labels(_compute_logits(forward, batch), batch))

    def judge(self, totals: Totals) -> dict[str, float]:
        """Return (pseudo-)perplexity and token accuracy."""
        return judge_tokens(totals)


def _compute_logits(forward: Forward, batch: Batch) -> Any:
    return forward(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits

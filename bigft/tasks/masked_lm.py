"""Guess hidden tokens from those around them: continued pretraining of BERT and its kin."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from bigft.data.layouts.layout import Layout
from bigft.data.layouts.masked import Masked
from bigft.data.loading.collate import Batch
from bigft.data.section import DataSection
from bigft.tasks.section import TaskSection
from bigft.tasks.task import Forward, LossSum, Score, Totals
from bigft.tasks.tokens import build_form, judge_tokens, pick_labels, score_tokens, sum_losses

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MASK = "<|mask|>"


def build(section: TaskSection, data: DataSection, model_config: Mapping[str, Any]) -> "MaskedLM":
    """Build the task; it needs nothing of the data."""
    return MaskedLM(section)


class MaskedLM:
    """Cross-entropy over the hidden tokens."""

    unit = "tokens"
    has_new_head = False

    def __init__(self, section: TaskSection) -> None:
        """Take what is hidden, and the form of the loss."""
        self._section = section
        self._form = build_form(section)

    def auto_class(self) -> Any:
        """Return `AutoModelForMaskedLM`."""
        from transformers import AutoModelForMaskedLM

        return AutoModelForMaskedLM

    def complete(self, tokenizer: "PreTrainedTokenizerBase", *, is_new: bool) -> None:
        """Give a new model's tokenizer a mask token, if it has none."""
        if is_new and tokenizer.mask_token_id is None:
            tokenizer.add_special_tokens({"mask_token": _MASK})

    def configure(self, config: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Do nothing."""

    def lay_out(self, tokenizer: "PreTrainedTokenizerBase", section: DataSection) -> Layout:
        """Return rows of which some tokens are hidden."""
        return Masked(
            tokenizer, section, share=self._section.mask_share, unit=self._section.mask_unit
        )

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

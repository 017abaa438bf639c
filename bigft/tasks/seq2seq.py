"""Write a target from a source with an encoder and a decoder (T5, BART), to translate or sum up."""

from typing import TYPE_CHECKING, Any

import torch

from bigft.data.loading.collate import Batch
from bigft.tasks.cross_entropy import PLAIN, LossForm
from bigft.tasks.rows import SourceTargetRows, TaskRows
from bigft.tasks.section import TaskSection
from bigft.tasks.task import Forward, LoadFrozen, LossSum, Score, Totals
from bigft.tasks.tokens import build_form, judge_tokens, pick_labels, score_tokens, sum_losses

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build(section: TaskSection, rows: SourceTargetRows) -> "Seq2Seq":
    """Build the task."""
    return Seq2Seq(rows, build_form(section))


class Seq2Seq:
    """Cross-entropy over the tokens of the target; padding does not count."""

    unit = "tokens"
    has_new_head = False

    def __init__(self, rows: SourceTargetRows, form: LossForm = PLAIN) -> None:
        """Take how the data are read, and the form of the loss."""
        self.rows: TaskRows = rows
        self._form = form

    def auto_class(self) -> Any:
        """Return `AutoModelForSeq2SeqLM`."""
        from transformers import AutoModelForSeq2SeqLM

        return AutoModelForSeq2SeqLM

    def configure(self, config: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Say what decoders begin with, where the config does not: padding, as T5's do."""
        if getattr(config, "decoder_start_token_id", None) is None:
            config.decoder_start_token_id = tokenizer.pad_token_id

    def prepare(self, load_frozen: LoadFrozen) -> None:
        """Do nothing."""

    def loss(self, forward: Forward, batch: Batch) -> LossSum:
        """Sum the cross-entropy over the tokens of the targets of one micro-batch."""
        return sum_losses(pick_labels(_compute_logits(forward, batch), batch), self._form)

    @torch.no_grad()
    def score(self, forward: Forward, batch: Batch) -> Score:
        """Sum loss and correctly predicted tokens of one micro-batch."""
        return score_tokens(pick_labels(_compute_logits(forward, batch), batch))

    def judge(self, totals: Totals) -> dict[str, float]:
        """Return perplexity and token accuracy."""
        return judge_tokens(totals)


def _compute_logits(forward: Forward, batch: Batch) -> Any:
    # The model itself knows what its decoder begins with.
    module: Any = getattr(forward, "module", forward)
    inputs = module.prepare_decoder_input_ids_from_labels(labels=batch.labels)
    return forward(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        decoder_input_ids=inputs,
        use_cache=False,
    ).logits

"""Predict the next token: fine-tuning on answers, continued pretraining, training from scratch."""

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bigft.data.loading.collate import IGNORED, Batch
from bigft.tasks.cross_entropy import PLAIN, LossForm
from bigft.tasks.rows import NextTokenRows, TaskRows
from bigft.tasks.section import TaskSection
from bigft.tasks.task import Forward, LoadFrozen, LossSum, Score, Totals
from bigft.tasks.tokens import (
    Predicted,
    build_form,
    judge_tokens,
    pick_learned,
    score_tokens,
    sum_losses,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build(section: TaskSection, rows: NextTokenRows) -> "CausalLM":
    """Build the task; all such rows are alike."""
    return CausalLM(build_form(section))


class CausalLM:
    """Next-token prediction on the supervised tokens of each sequence."""

    unit = "tokens"
    has_new_head = False

    def __init__(self, form: LossForm = PLAIN) -> None:
        """Take the form of the loss."""
        self.rows: TaskRows = NextTokenRows()
        self._form = form
        self._keeps_columns: bool | None = None

    def auto_class(self) -> Any:
        """Return `AutoModelForCausalLM`."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def configure(self, config: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Do nothing."""

    def prepare(self, load_frozen: LoadFrozen) -> None:
        """Do nothing."""

    def loss(self, forward: Forward, batch: Batch) -> LossSum:
        """Sum the cross-entropy over the supervised tokens of one micro-batch."""
        return sum_losses(self.predict(forward, batch), self._form)

    @torch.no_grad()
    def score(self, forward: Forward, batch: Batch) -> Score:
        """Sum loss and correctly predicted tokens of one micro-batch."""
        return score_tokens(self.predict(forward, batch))

    def judge(self, totals: Totals) -> dict[str, float]:
        """Return perplexity and token accuracy."""
        return judge_tokens(totals)

    def predict(self, forward: Forward, batch: Batch) -> Predicted:
        """Return logits and targets of the supervised tokens."""
        # The logits of a token predict the next one: shift the labels, not the logits.
        targets_BT = torch.full_like(batch.labels, IGNORED)
        targets_BT[:, :-1] = batch.labels[:, 1:]
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if batch.attention_mask is not None:
            inputs["attention_mask"] = batch.attention_mask
        else:
            assert batch.position_ids is not None, "one of the two is there"
            inputs["position_ids"] = batch.position_ids
            inputs |= _find_flash_bounds(forward, batch.position_ids)
        columns = self._needed_columns(forward, targets_BT)
        # A token and the one that predicts it are of one example, so of one source.
        sources_BT = batch.sources
        if columns is not None:
            inputs["logits_to_keep"] = columns
            targets_BT = targets_BT[:, columns]
            sources_BT = None if sources_BT is None else sources_BT[:, columns]
        logits_BTV = forward(**inputs).logits
        return pick_learned(logits_BTV, targets_BT, sources_BT, batch.num_sources)

    def _needed_columns(self, forward: Forward, targets_BT: Tensor) -> Tensor | None:
        """Positions whose logits are needed at all, or None when the model cannot leave any out.

        A prompt's logits are never looked at; leaving them out saves their share of the largest
        matrix product and of the largest tensor of the step.
        """
        if self._keeps_columns is None:
            module: Any = getattr(forward, "module", forward)
            signature = inspect.signature(type(module).forward)
            self._keeps_columns = "logits_to_keep" in signature.parameters
        if not self._keeps_columns:
            return None
        columns = (targets_BT != IGNORED).any(0).nonzero().squeeze(1)
        # At least one, so that the head takes part in the step on every rank (ZeRO-3 gathers it).
        return columns if len(columns) else torch.zeros(1, dtype=torch.int64, device=columns.device)


def _find_flash_bounds(forward: Forward, positions_BT: Tensor) -> dict[str, Any]:
    """Say where examples begin, for FlashAttention; empty for other attention implementations.

    transformers finds packed examples by their positions only in a batch of one sequence
    (`_is_packed_sequence`). In a larger one FlashAttention would let them see each other.
    """
    config = getattr(getattr(forward, "module", forward), "config", None)
    name = getattr(config and config.get_text_config(), "_attn_implementation", None) or ""
    if "flash" not in name:
        return {}
    flat = positions_BT.flatten()
    starts = (flat == 0).nonzero().squeeze(1)
    bounds = torch.cat([starts, starts.new_tensor([len(flat)])]).to(torch.int32)
    longest = int(bounds.diff().max())
    return {
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }

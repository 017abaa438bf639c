"""Predict the next token: fine-tuning on answers, continued pretraining, training from scratch."""

import inspect
from typing import Any

import torch
from torch import Tensor

from bigft.data.loading.collate import Batch
from bigft.tasks.cross_entropy import sum_cross_entropy
from bigft.tasks.task import Forward, LossSum, Score

IGNORED = -100
"""Label of a token that does not count, as transformers spells it."""


class CausalLM:
    """Next-token prediction on the supervised tokens of each sequence."""

    def __init__(self) -> None:
        """Make the task; it has no settings."""
        self._keeps_columns: bool | None = None

    def auto_class(self) -> Any:
        """Return `AutoModelForCausalLM`."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def loss(self, forward: Forward, batch: Batch) -> LossSum:
        """Sum the cross-entropy over the supervised tokens of one micro-batch."""
        logits, targets, sources = self._predict(forward, batch)
        losses = None if sources is None else logits.new_empty(len(targets), dtype=torch.float32)
        total = sum_cross_entropy(logits, targets, losses)
        return LossSum(total, len(targets), _sum_by_source(losses, sources, batch.num_sources))

    @torch.no_grad()
    def score(self, forward: Forward, batch: Batch) -> Score:
        """Sum loss and correctly predicted tokens of one micro-batch."""
        logits, targets, sources = self._predict(forward, batch)
        correct = int((logits.argmax(-1) == targets).sum())
        losses = None if sources is None else logits.new_empty(len(targets), dtype=torch.float32)
        total = float(sum_cross_entropy(logits, targets, losses))
        by_source = _sum_by_source(losses, sources, batch.num_sources)
        return Score(total, correct, len(targets), by_source)

    def _predict(self, forward: Forward, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return logits `(N, V)`, targets and sources `(N,)` of the N supervised tokens."""
        # The logits of a token predict the next one: shift the labels, not the logits.
        targets_BT = torch.full_like(batch.labels, IGNORED)
        targets_BT[:, :-1] = batch.labels[:, 1:]
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
        if batch.attention_mask is not None:
            inputs["attention_mask"] = batch.attention_mask
        else:
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
        supervised = targets_BT != IGNORED
        sources = None if sources_BT is None else sources_BT[supervised]
        if bool(supervised.all()):
            return logits_BTV.flatten(0, 1), targets_BT.flatten(), sources
        return logits_BTV[supervised], targets_BT[supervised], sources

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


def _sum_by_source(
    losses: Tensor | None, sources: Tensor | None, num_sources: int
) -> Tensor | None:
    if losses is None or sources is None:
        return None
    sums = losses.new_zeros(num_sources, 2)
    return sums.index_add_(0, sources, torch.stack([losses, torch.ones_like(losses)], 1))


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

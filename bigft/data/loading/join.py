"""The rows of several tasks as one batch, which one model body reads at once."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from bigft.data.loading.collate import IGNORED, Batch


def join(
    found: Sequence[Batch], counts: Sequence[int], *, aligned: Sequence[bool], pad_id: int
) -> Batch:
    """Lay the rows of several tasks one below the other.

    Args:
        found: The batch of each task; one without rows has a row of padding.
        counts: Rows of each task.
        aligned: Of each task, whether it has a label for each token.
        pad_id: What fills up shorter rows.

    Returns:
        A batch with `parts` and `spans`. Rows of padding are left out but for one, where there is
        no other row.
    """
    width = max(part.input_ids.shape[1] for part in found)
    parts = [
        _widen(part, width, is_aligned=is_aligned, pad_id=pad_id)
        for part, is_aligned in zip(found, aligned, strict=True)
    ]
    real = [part for part, count in zip(parts, counts, strict=True) if count]
    input_ids = torch.cat([part.input_ids for part in real or parts[:1]])
    mask = torch.cat([_must(part.attention_mask) for part in real or parts[:1]])
    types = None
    if any(part.token_type_ids is not None for part in parts):
        types = torch.cat([_find_types(part) for part in real or parts[:1]])
    ends = torch.tensor(counts).cumsum(0).tolist()
    spans = [
        slice(end - count, end) if count else slice(0, 1)
        for end, count in zip(ends, counts, strict=True)
    ]
    for number, count in enumerate(counts):
        if not count:
            # The head reads what the body has read: any row will do.
            parts[number] = replace(
                parts[number], input_ids=input_ids[:1], attention_mask=mask[:1],
                token_type_ids=None if types is None else types[:1],
            )  # fmt: skip
    labels = torch.full((len(input_ids), 1), 0 if real else IGNORED)
    numbers = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    sources = numbers[:, None] if real else torch.zeros_like(labels)
    return Batch(
        input_ids, labels, None, mask, sources, len(counts), types, tuple(parts), tuple(spans)
    )


def _widen(part: Batch, width: int, *, is_aligned: bool, pad_id: int) -> Batch:
    more = (0, width - part.input_ids.shape[1])
    types = part.token_type_ids
    return replace(
        part,
        input_ids=functional.pad(part.input_ids, more, value=pad_id),
        labels=functional.pad(part.labels, more, value=IGNORED) if is_aligned else part.labels,
        # There is a mask, and then models count for themselves.
        position_ids=None,
        attention_mask=functional.pad(_must(part.attention_mask), more),
        token_type_ids=None if types is None else functional.pad(types, more),
    )


def _find_types(part: Batch) -> Tensor:
    types = part.token_type_ids
    return torch.zeros_like(part.input_ids) if types is None else types


def _must(mask: Tensor | None) -> Tensor:
    assert mask is not None, "tasks that share a body do not pack"
    return mask

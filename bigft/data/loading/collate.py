"""From rows to the tensors of one micro-batch.

An item is the list of rows that share a sequence; an empty list is a sequence of nothing but
padding, which fills up the last batch of an epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bigft.data.tokens.tokenize import Row

IGNORED = -100
"""The label of a token that does not count in the loss, as in torch and transformers."""

# Matrix shapes that are multiples of 8 use the tensor cores fully.
_LENGTH_MULTIPLE = 8


@dataclass(frozen=True)
class Batch:
    """One micro-batch; every tensor is int64 of shape `(B, T)` where nothing else is said."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    """What is learned, and -100 where nothing is. Of language models aligned with `input_ids`, not
    shifted; of an encoder and decoder the tokens of the target `(B, S)`; else the label of each
    row `(B, size)`, which may be fp32 and NaN where there is none."""

    position_ids: torch.Tensor | None
    attention_mask: torch.Tensor | None
    """None when several examples share a sequence: then `position_ids` restart at each example,
    and that is how the model tells them apart. One of the two is there."""

    sources: torch.Tensor | None = None
    """Number of the part of the data that each label comes from, in the shape of `labels`; None
    when there is one part."""

    num_sources: int = 1
    """Parts that the data have."""

    token_type_ids: torch.Tensor | None = None
    """0 for the first text of a pair, 1 for the second."""

    parts: tuple["Batch", ...] = ()
    """Of several tasks: the rows of each, as wide as all of them together. Then `input_ids` has the
    rows of all, `labels` `(B, 1)` is 0 for a row and -100 for padding. A task without a row has one
    that stands in and counts nothing."""

    spans: tuple[slice, ...] = ()
    """Where the rows of each of `parts` are in `input_ids`."""

    step_terms: tuple[int, ...] = ()
    """Terms of the loss of the whole step, all ranks and micro-steps, by part of the data; empty in
    evaluations and where there is one part."""

    rows: tuple[int, ...] = ()
    """Of language models, numbers of the rows that the sequences are made of, in their order."""

    def to(self, device: torch.device | str) -> "Batch":
        """Copy the tensors to a device."""
        tensors: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **tensors, parts=tuple(part.to(device) for part in self.parts))

    @property
    def supervised_tokens(self) -> int:
        """Terms of the loss."""
        return int(find_learned(self.labels).sum())


def find_learned(labels: torch.Tensor) -> torch.Tensor:
    """Find the labels that count in the loss, boolean, in the same shape."""
    return ~labels.isnan() if labels.is_floating_point() else labels != IGNORED


def collate_packed(
    items: Sequence[Sequence[Row]], *, pad_id: int, max_length: int, num_sources: int = 1
) -> Batch:
    """Lay the rows of each item end to end; padding is one more example without labels."""
    arrays = _Arrays(items, pad_id, max_length, num_sources)
    for sequence, rows in enumerate(items):
        start = 0
        for row in rows:
            arrays.place(sequence, start, row)
            start += len(row)
        arrays.position_ids[sequence, start:] = np.arange(arrays.width - start)
    return arrays.build(attention_mask=None)


def collate_padded(
    items: Sequence[Sequence[Row]], *, pad_id: int, max_length: int, num_sources: int = 1
) -> Batch:
    """Put one row into each sequence, padded on the right and masked there.

    Raises:
        ValueError: An item has more than one row.
    """
    arrays = _Arrays(items, pad_id, max_length, num_sources)
    mask = np.zeros_like(arrays.input_ids)
    arrays.position_ids[:] = np.arange(arrays.width)
    for sequence, rows in enumerate(items):
        if len(rows) > 1:
            raise ValueError(f"{len(rows)} rows in one padded sequence")
        for row in rows:
            arrays.place(sequence, 0, row)
        # A sequence of padding attends to itself: softmax over nothing is NaN.
        mask[sequence, : len(rows[0]) if rows else arrays.width] = 1
    return arrays.build(attention_mask=mask)


class _Arrays:
    """The arrays of a batch while it is filled."""

    def __init__(
        self, items: Sequence[Sequence[Row]], pad_id: int, max_length: int, num_sources: int
    ) -> None:
        longest = max((sum(len(row) for row in rows) for rows in items), default=0)
        rounded = -(-max(longest, 1) // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
        self.width = max(longest, min(rounded, max_length))
        shape = (len(items), self.width)
        self.input_ids: npt.NDArray[np.int64] = np.full(shape, pad_id, dtype=np.int64)
        self.labels: npt.NDArray[np.int64] = np.full(shape, IGNORED, dtype=np.int64)
        self.position_ids: npt.NDArray[np.int64] = np.zeros(shape, dtype=np.int64)
        self.sources: npt.NDArray[np.int64] | None = None
        self.num_sources = num_sources
        self.rows: list[int] = []
        if num_sources > 1:
            self.sources = np.zeros(shape, dtype=np.int64)

    def place(self, sequence: int, start: int, row: Row) -> None:
        end = start + len(row)
        self.rows.append(row.number)
        self.input_ids[sequence, start:end] = row.input_ids
        self.labels[sequence, start:end] = np.where(row.supervised, row.input_ids, IGNORED)
        self.position_ids[sequence, start:end] = np.arange(len(row))
        if self.sources is not None:
            self.sources[sequence, start:end] = row.source

    def build(self, attention_mask: npt.NDArray[np.int64] | None) -> Batch:
        return Batch(
            torch.from_numpy(self.input_ids),
            torch.from_numpy(self.labels),
            torch.from_numpy(self.position_ids),
            None if attention_mask is None else torch.from_numpy(attention_mask),
            None if self.sources is None else torch.from_numpy(self.sources),
            self.num_sources,
            rows=tuple(self.rows),
        )

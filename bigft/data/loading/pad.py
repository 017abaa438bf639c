"""Rows of unequal length as one tensor."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

# Matrix shapes that are multiples of 8 use the tensor cores fully.
_LENGTH_MULTIPLE = 8


def pad(
    rows: Sequence[npt.NDArray[np.integer]], *, fill: int, longest: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad on the right to a common length, a multiple of 8 where `longest` allows.

    Args:
        rows: `(T_i,)` each.
        fill: What to pad with.
        longest: No row is longer.

    Returns:
        Rows `(B, T)` and a mask `(B, T)`, 1 where a row is; both int64. An empty row attends to
        itself: softmax over nothing is NaN.
    """
    needed = max([len(row) for row in rows] + [1])
    width = max(needed, min(-(-needed // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE, longest))
    values = np.full((len(rows), width), fill, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for number, row in enumerate(rows):
        values[number, : len(row)] = row
        mask[number, : len(row) or width] = 1
    return torch.from_numpy(values), torch.from_numpy(mask)


def name_sources(items: Sequence[Sequence[object]], labels: torch.Tensor) -> torch.Tensor:
    """Give every label the number of the part of the data that its row comes from."""
    sources = torch.zeros_like(labels, dtype=torch.int64)
    for number, rows in enumerate(items):
        for row in rows:
            sources[number] = row.source  # type: ignore[attr-defined]
    return sources

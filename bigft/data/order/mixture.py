"""How much of each part of the data an epoch takes, by tokens.

Every part is thought of as an endless row of shuffled copies of itself. An epoch takes the next
stretch of it, as long as the part's weight says:

    a.jsonl:3   |  copy 0  |  copy 1  |  copy 2  | ...     repeated when it is small
                |--- epoch 0 ---|--- epoch 1 ---|
    b.jsonl:1   |            copy 0            |  copy 1   nothing is lost when it is large:
                |- epoch 0 -|- epoch 1 -|                  the next epoch goes on behind it
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]


def choose_rows(
    parts: Sequence[Numbers],
    lengths: npt.NDArray[np.integer],
    weights: Sequence[float],
    *,
    seed: int,
    epoch: int,
) -> Numbers:
    """Choose the rows of one epoch, in no useful order.

    An epoch has as many tokens as all parts together, give or take a row per part. Rows that an
    epoch takes of a part it takes once, unless the part is smaller than its share.

    Args:
        parts: Row numbers of each part.
        lengths: Tokens per row, of all rows.
        weights: Share of the tokens of each part, in any unit.
        seed: Decides the order within each part.
        epoch: 0 is the first.
    """
    totals = [int(lengths[rows].sum()) for rows in parts]
    whole, unit = sum(totals), sum(weights)
    chosen = []
    for number, (rows, total, weight) in enumerate(zip(parts, totals, weights, strict=True)):
        share = whole * weight / unit
        begin, end = epoch * share, (epoch + 1) * share
        for copy in range(int(begin // total), int(np.ceil(end / total))) if total else ():
            order = np.random.Generator(np.random.PCG64([seed, number, copy])).permutation(rows)
            first = np.cumsum(lengths[order]) - lengths[order] + copy * total
            chosen.append(order[(first >= begin) & (first < end)])
    return np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64)

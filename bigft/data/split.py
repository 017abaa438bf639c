"""The held-out share of the data."""

import numpy as np
import numpy.typing as npt

RowNumbers = npt.NDArray[np.int64]


def split_by_digest(
    digests: npt.NDArray[np.uint64], eval_fraction: float
) -> tuple[RowNumbers, RowNumbers]:
    """Choose the rows to train on and the rows to hold out, by what they say.

    Equal examples, and the pieces of one long text, are on the same side. Adding or removing
    other rows moves none, except where a side would be empty although there are two rows.

    Args:
        digests: `(rows,)`, evenly distributed numbers made from each row's example.
        eval_fraction: Share to hold out; 0 holds out nothing.
    """
    rows = np.arange(len(digests), dtype=np.int64)
    if eval_fraction == 0 or len(rows) < 2:  # noqa: PLR2004
        return rows, rows[:0]
    # 53 bits, all of which a float holds, as a number in [0, 1).
    held_out = (digests >> np.uint64(11)) / float(1 << 53) < eval_fraction
    if held_out.all() or not held_out.any():
        # So few rows that chance left a side empty: the example with the smallest number is held
        # out, all its pieces with it.
        held_out = digests == digests.min()
    if held_out.all():
        held_out = rows == rows[-1]
    return rows[~held_out], rows[held_out]

"""Which rows are trained on and which are held out, by what they say."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bigft.data.example import find_copies, find_originals

RowNumbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Row numbers of each side."""

    train: RowNumbers
    evaluation: RowNumbers
    test: RowNumbers


def split_by_digest(
    digests: npt.NDArray[np.uint64], eval_fraction: float, test_fraction: float = 0.0
) -> Split:
    """Choose the rows of each side.

    Equal examples, and the pieces of one long text, are on the same side. Adding or removing
    other rows moves none, except where a side would be empty although there are two rows. A single
    row is trained on. Changed copies are trained on or left out, never held out.

    Args:
        digests: `(rows,)`, evenly distributed numbers made from each row's example.
        eval_fraction: Share to evaluate on; 0 holds out nothing.
        test_fraction: Share that is left for a test after training.
    """
    rows = np.arange(len(digests), dtype=np.int64)
    if len(rows) == 1:
        return Split(rows, rows[:0], rows[:0])
    originals = ~find_copies(digests)
    # 53 bits, all of which a float holds, as a number in [0, 1).
    places = (digests >> np.uint64(11)) / float(1 << 53)
    held_out = places < eval_fraction
    test = ~held_out & (places < eval_fraction + test_fraction)
    train = ~held_out & ~test
    if eval_fraction > 0 and len(rows) and not (held_out.any() and train.any()):
        # So few rows that chance left a side empty: the example with the smallest number is held
        # out, all its pieces and copies with it.
        examples = find_originals(digests)
        smallest = examples == examples.min()
        held_out = smallest if not smallest.all() else rows == rows[-1]
        test = test & ~held_out
        train = ~held_out & ~test
    return Split(rows[train], rows[held_out & originals], rows[test & originals])

"""What an epoch is made of: which rows share a sequence in it."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bigft.data.order.mixture import choose_rows
from bigft.data.order.pack import Bins, pack_best_fit, pack_none

Numbers = npt.NDArray[np.int64]


class Plan(Protocol):
    """The sequences of every epoch."""

    def bins(self, epoch: int) -> Bins:
        """Give the rows of each sequence of an epoch; 0 is the first."""


class FixedPlan:
    """Every row once in each epoch, in the same company."""

    def __init__(self, bins: Bins) -> None:
        """Take what was packed before."""
        self._bins = bins

    def bins(self, epoch: int) -> Bins:
        """Give the same sequences for every epoch."""
        return self._bins


class MixedPlan:
    """Weighted parts; each epoch takes other rows of them, and packs them anew."""

    def __init__(
        self,
        parts: Sequence[Numbers],
        lengths: npt.NDArray[np.integer],
        weights: Sequence[float],
        pack: Callable[[Numbers], Bins],
        *,
        seed: int,
        first: Bins | None = None,
    ) -> None:
        """Hold what the choice needs; see `bigft.data.order.mixture.choose_rows`.

        Args:
            parts: Row numbers of each part.
            lengths: Tokens per row, of all rows.
            weights: Share of the tokens of each part, in any unit.
            pack: Puts rows into sequences.
            seed: Decides the order within each part.
            first: Sequences of the first epoch, where they were built before: packing millions of
                rows takes seconds.
        """

        def build(epoch: int) -> Bins:
            if epoch == 0 and first is not None:
                return first
            return pack(choose_rows(parts, lengths, weights, seed=seed, epoch=epoch))

        self.bins = lru_cache(maxsize=2)(build)
        """Give the rows of each sequence of an epoch; 0 is the first."""


def pack_rows(
    rows: Numbers, lengths: npt.NDArray[np.integer], packing: str, max_length: int
) -> Bins:
    """Pack some rows by the name of the way to do it, `none` or `best_fit`."""
    chosen = lengths[rows]
    bins = pack_none(chosen) if packing == "none" else pack_best_fit(chosen, max_length)
    return bins.pick(rows)

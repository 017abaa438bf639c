"""What an epoch is made of: which rows share a sequence in it."""

import math
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


class EpisodePlan:
    """One part after the other, each drawn anew: a learning task, of which a few steps are made.

    The sequences of an epoch are in the order in which they are to be trained on. Each part's are
    shuffled whenever it is drawn, and come again where there are fewer than an episode has.
    """

    def __init__(
        self, parts: Sequence[Bins], weights: Sequence[float], *, length: int, seed: int
    ) -> None:
        """Hold what is drawn from.

        Args:
            parts: Sequences of each part.
            weights: How often each part is drawn, in any unit.
            length: Sequences of an episode.
            seed: Decides what is drawn, together with the epoch's number.
        """
        sizes = [len(part) for part in parts]
        starts = np.cumsum([0, *sizes])
        joined = _join(parts)
        chances = np.array(weights) / sum(weights)

        def build(epoch: int) -> Bins:
            generator = np.random.Generator(np.random.PCG64([seed, epoch]))
            drawn = generator.choice(len(sizes), math.ceil(sum(sizes) / length), p=chances)
            return joined.take(np.concatenate([_draw(generator, n) for n in drawn.tolist()]))

        def _draw(generator: np.random.Generator, number: int) -> Numbers:
            size = sizes[number]
            copies = [generator.permutation(size) for _ in range(math.ceil(length / size))]
            found: Numbers = starts[number] + np.concatenate(copies)[:length]
            return found

        self.bins = lru_cache(maxsize=2)(build)
        """Give the rows of each sequence of an epoch; 0 is the first."""


def _join(parts: Sequence[Bins]) -> Bins:
    ends = np.cumsum([0, *(len(part.rows) for part in parts)])
    starts = [part.starts[:-1] + end for part, end in zip(parts, ends, strict=False)]
    return Bins(np.concatenate([part.rows for part in parts]), np.concatenate([*starts, ends[-1:]]))


def pack_rows(
    rows: Numbers, lengths: npt.NDArray[np.integer], packing: str, max_length: int
) -> Bins:
    """Pack some rows by the name of the way to do it, `none` or `best_fit`."""
    chosen = lengths[rows]
    bins = pack_none(chosen) if packing == "none" else pack_best_fit(chosen, max_length)
    return bins.pick(rows)

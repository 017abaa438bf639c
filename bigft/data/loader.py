"""The order of the data: which sequences each rank sees at each step, computable at any step.

The sequences of a step are a slice of the epoch's shuffled order. They are dealt out in the order
micro-step, rank, place in the micro-batch; so the slice does not depend on how its size is made
up of ranks, accumulation and micro-batch.

    order of the epoch   | 0 1 2 3 | 4 5 6 7 | 8 9 . . |   micro-batch 1, 2 micro-steps, 2 ranks
    rank 0                 0   2     4   6     8   .       . is an item without rows
    rank 1                   1   3     5   7     9   .
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bigft.data.collate import Batch
from bigft.data.pack import Bins
from bigft.data.store import TokenStore
from bigft.data.tokenize import Row

Collate = Callable[[Sequence[Sequence[Row]]], Batch]


@dataclass(frozen=True)
class StepBatches:
    """What one rank needs for one optimizer step."""

    micro_batches: list[Batch]
    supervised_tokens: int
    """Of the global batch: all ranks and micro-steps."""

    tokens: int
    """Of the global batch, without padding."""

    epoch: float
    """Epochs done when this step is done."""


class Loader:
    """Training batches, endless, starting at any step at once."""

    def __init__(  # noqa: PLR0913
        self,
        store: TokenStore,
        bins: Bins,
        *,
        micro_batch_size: int,
        gradient_accumulation_steps: int,
        rank: int,
        world_size: int,
        seed: int,
        collate: Collate,
        epochs_shuffled: bool = True,
    ) -> None:
        """Prepare the order; no token is read yet.

        Args:
            store: The rows.
            bins: Row numbers per sequence.
            micro_batch_size: Sequences per rank and micro-step.
            gradient_accumulation_steps: Micro-steps per step.
            rank: This rank in the data-parallel group.
            world_size: Ranks in that group.
            seed: Decides the order together with the epoch's number.
            collate: Makes a batch from lists of rows.
            epochs_shuffled: Whether each epoch has an order of its own; else that of `bins`.
        """
        self._store = store
        self._bins = bins
        self._micro_batch_size = micro_batch_size
        self._micro_steps = gradient_accumulation_steps
        self._rank = rank
        self._world_size = world_size
        self._seed = seed
        self._collate = collate
        self._epochs_shuffled = epochs_shuffled
        self._tokens = _sum_over_bins(store.lengths, bins)
        self._supervised = _sum_over_bins(store.supervised_counts, bins)

    @property
    def global_batch_size(self) -> int:
        """Sequences per step over all ranks."""
        return self._micro_batch_size * self._micro_steps * self._world_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every sequence was seen; the last one may be filled up with padding."""
        return math.ceil(len(self._bins) / self.global_batch_size)

    def steps_from(self, step: int) -> Iterator[StepBatches]:
        """Give the batches of step `step`, `step + 1`, ... without end; 0 is the first."""
        order_epoch, order = -1, np.arange(0)
        while True:
            epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order_epoch, order = epoch, self._shuffle(epoch)
            start = step_of_epoch * self.global_batch_size
            yield self._build_step(order[start : start + self.global_batch_size], step)
            step += 1

    def _shuffle(self, epoch: int) -> npt.NDArray[np.int64]:
        if not self._epochs_shuffled:
            return np.arange(len(self._bins))
        generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
        return generator.permutation(len(self._bins))

    def _build_step(self, numbers: npt.NDArray[np.int64], step: int) -> StepBatches:
        per_micro_step = self._micro_batch_size * self._world_size
        mine = []
        for micro_step in range(self._micro_steps):
            start = micro_step * per_micro_step + self._rank * self._micro_batch_size
            items = load_items(self._store, self._bins, numbers[start:], self._micro_batch_size)
            mine.append(self._collate(items))
        return StepBatches(
            micro_batches=mine,
            supervised_tokens=int(self._supervised[numbers].sum()),
            tokens=int(self._tokens[numbers].sum()),
            epoch=(step + 1) / self.steps_per_epoch,
        )


class EvalLoader:
    """Evaluation batches: each sequence once, as many batches on every rank."""

    def __init__(
        self,
        store: TokenStore,
        bins: Bins,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        collate: Collate,
    ) -> None:
        """Prepare the order; no token is read yet."""
        self._store = store
        self._bins = bins
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._collate = collate
        self.supervised_tokens = int(_sum_over_bins(store.supervised_counts, bins).sum())
        """Over all ranks and batches."""

    def __len__(self) -> int:
        """Count the batches of this rank, the same number on every rank."""
        return math.ceil(len(self._bins) / (self._batch_size * self._world_size))

    def eval_batches(self, limit: int | None = None) -> Iterator[Batch]:
        """Give this rank's batches in a fixed order; the last ones may be only padding.

        Args:
            limit: At most this many batches; None for all.
        """
        numbers = np.arange(len(self._bins))
        for batch in range(len(self) if limit is None else min(limit, len(self))):
            start = (batch * self._world_size + self._rank) * self._batch_size
            yield self._collate(
                load_items(self._store, self._bins, numbers[start:], self._batch_size)
            )


def load_items(
    store: TokenStore, bins: Bins, numbers: npt.NDArray[np.int64], count: int
) -> list[list[Row]]:
    """Load the first `count` sequences of `numbers`; where there are fewer, add empty ones."""
    items = [[store.load_row(int(row)) for row in bins[number]] for number in numbers[:count]]
    return items + [[] for _ in range(count - len(items))]


def _sum_over_bins(per_row: npt.NDArray[np.int64], bins: Bins) -> npt.NDArray[np.int64]:
    if not bins:
        return np.zeros(0, dtype=np.int64)
    starts = np.cumsum([0] + [len(rows) for rows in bins[:-1]])
    return np.add.reduceat(per_row[np.concatenate(bins)], starts)

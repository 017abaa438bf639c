"""The order of the data: which sequences each rank sees at each step, computable at any step.

The sequences of a step are a slice of the epoch's order. They are dealt out in the order
micro-step, rank, place in the micro-batch; so the slice does not depend on how its size is made
up of ranks, accumulation and micro-batch.

    order of the epoch   | 0 1 2 3 | 4 5 6 7 | 8 9 . . |   micro-batch 1, 2 micro-steps, 2 ranks
    rank 0                 0   2     4   6     8   .       . is an item without rows
    rank 1                   1   3     5   7     9   .
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bigft.data.loading.collate import Batch
from bigft.data.loading.prefetch import prefetch
from bigft.data.order.cursor import Cursor
from bigft.data.order.pack import Bins
from bigft.data.order.plan import Plan
from bigft.data.order.shuffle import shuffle, shuffle_by_length
from bigft.data.store.rows import Rows
from bigft.data.tokens.tokenize import Row

Numbers = npt.NDArray[np.int64]
Collate = Callable[[Sequence[Sequence[Row]]], Batch]
Counts = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Share:
    """How the sequences of a step are dealt out, and which of them this rank gets."""

    micro_batch_size: int
    """Sequences per rank and micro-step."""

    gradient_accumulation_steps: int = 1
    """Micro-steps per step."""

    rank: int = 0
    world_size: int = 1

    inner_steps: int = 0
    """Steps that see one part of the data after the other; 0: parts are mixed."""

    @property
    def global_batch_size(self) -> int:
        """Sequences per step over all ranks."""
        return self.micro_batch_size * self.gradient_accumulation_steps * self.world_size

    def mine(self, micro_step: int) -> slice:
        """Say which of a step's sequences this rank takes in a micro-step."""
        start = (micro_step * self.world_size + self.rank) * self.micro_batch_size
        return slice(start, start + self.micro_batch_size)


@dataclass(frozen=True)
class Samples:
    """The raw rows of one step by name, of all ranks; nothing is looked up before it is asked."""

    share: Share
    """Of this rank; the other ranks' follow from it."""

    name_rows: Callable[[int], list[str]]
    """Where the raw rows of one of the step's sequences stand, by its place in the step."""

    num_sequences: int

    def list_all(self) -> list[str]:
        """Name every row of the step, in the order of the data."""
        return self._list(range(self.num_sequences))

    def list_of(self, rank: int, micro_step: int) -> list[str]:
        """Name the rows that one rank saw in one micro-step."""
        places = replace(self.share, rank=rank).mine(micro_step)
        return self._list(range(self.num_sequences)[places])

    def _list(self, places: Sequence[int]) -> list[str]:
        # Pieces of one long row, and copies of one row, have one name.
        return list(dict.fromkeys(name for place in places for name in self.name_rows(place)))


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

    cursor: Cursor
    """Where the next step begins."""

    samples: Samples
    """For messages about this step."""


class Loader(Protocol):
    """Training batches without end."""

    steps_per_epoch: int | None
    """Steps until every sequence was seen; None where nobody knows before the end."""

    def steps_from(self, cursor: Cursor) -> Iterator[StepBatches]:
        """Give the batches of the step that begins at `cursor`, and of all that follow."""


class StoreLoader:
    """Training batches from tokenised rows, starting at any place at once."""

    def __init__(
        self,
        rows: Rows,
        plan: Plan,
        share: Share,
        *,
        seed: int,
        collate: Collate,
        num_workers: int = 0,
        order: str = "shuffled",
        terms: Counts | None = None,
        tokens: Counts | None = None,
    ) -> None:
        """Prepare the order; no token is read yet.

        Args:
            rows: All rows.
            plan: The rows of each sequence, epoch by epoch.
            share: What this rank gets of a step.
            seed: Decides the order together with the epoch's number.
            collate: Makes a batch from lists of rows.
            num_workers: Threads that work ahead; see `bigft.data.loading.prefetch`.
            order: `shuffled`, `by_length` (shuffled, neighbours of similar length) or `given`.
            terms: Of the loss, by row; absent: the learned entries.
            tokens: By row; absent: all entries.
        """
        self._terms = rows.supervised_counts if terms is None else terms
        self._tokens = rows.lengths if tokens is None else tokens
        self._rows = rows
        self._plan = plan
        self._share = share
        self._seed = seed
        self._collate = collate
        self._num_workers = num_workers
        self._order = order
        # Prefetching crosses into the next epoch before this one is over.
        self._open_epoch = lru_cache(maxsize=2)(self._build_epoch)
        self.steps_per_epoch: int | None = math.ceil(len(plan.bins(0)) / share.global_batch_size)
        """Steps until every sequence was seen; the last one may be filled up with padding."""

    def steps_from(self, cursor: Cursor) -> Iterator[StepBatches]:
        """Give the batches of the step that begins at `cursor`, and of all that follow."""
        return prefetch(self._build_step, self._places(cursor), self._num_workers)

    def _places(self, cursor: Cursor) -> Iterator["_Place"]:
        epoch, position = cursor.epoch, cursor.position
        while True:
            opened = self._open_epoch(epoch)
            while position < len(opened.order):
                numbers = opened.order[position : position + self._share.global_batch_size]
                position += len(numbers)
                is_over = position == len(opened.order)
                after = Cursor(epoch + 1) if is_over else Cursor(epoch, position)
                yield _Place(opened, numbers, after, epoch + position / len(opened.order))
            epoch, position = epoch + 1, 0

    def _build_epoch(self, epoch: int) -> "_Epoch":
        bins = self._plan.bins(epoch)
        tokens = bins.sum(self._tokens)
        if self._order == "given":
            order = np.arange(len(bins))
        elif self._order == "by_length":
            order = shuffle_by_length(tokens, seed=self._seed, epoch=epoch)
        else:
            order = shuffle(len(bins), seed=self._seed, epoch=epoch)
        return _Epoch(epoch, bins, order, tokens, bins.sum(self._terms))

    def _build_step(self, place: "_Place") -> StepBatches:
        epoch, numbers = place.epoch, place.numbers
        load = partial(
            load_items,
            self._rows,
            epoch.bins,
            count=self._share.micro_batch_size,
            draw=(self._seed, epoch.number),
        )
        terms = self._count_terms(epoch.bins, numbers)
        return StepBatches(
            micro_batches=[
                replace(
                    self._collate(load(numbers[self._share.mine(micro_step)])), step_terms=terms
                )
                for micro_step in range(self._share.gradient_accumulation_steps)
            ],
            supervised_tokens=int(epoch.supervised[numbers].sum()),
            tokens=int(epoch.tokens[numbers].sum()),
            epoch=place.epochs_done,
            cursor=place.after,
            samples=Samples(
                self._share, partial(name_rows, self._rows, epoch.bins, numbers), len(numbers)
            ),
        )

    def _count_terms(self, bins: Bins, numbers: Numbers) -> tuple[int, ...]:
        """Count the terms of a step's loss by part of the data."""
        num_parts = len(self._rows.stores)
        if num_parts == 1:
            return ()
        rows = np.concatenate([bins[number] for number in numbers])
        parts = self._rows.find_part(rows)
        counts = np.bincount(parts, weights=self._terms[rows], minlength=num_parts)
        return tuple(map(int, counts))


@dataclass(frozen=True)
class _Epoch:
    number: int
    bins: Bins
    order: Numbers
    tokens: Numbers
    supervised: Numbers


@dataclass(frozen=True)
class _Place:
    """One step's slice of the order."""

    epoch: _Epoch
    numbers: Numbers
    after: Cursor
    epochs_done: float


class EvalLoader:
    """Evaluation batches: each sequence once, as many batches on every rank."""

    def __init__(
        self,
        rows: Rows,
        bins: Bins,
        share: Share,
        *,
        collate: Collate,
        terms: Counts | None = None,
        is_shuffled: bool = False,
    ) -> None:
        """Prepare the order; no token is read yet.

        Args:
            rows: All rows.
            bins: The rows of each sequence.
            share: What this rank gets of a batch of all ranks.
            collate: Makes a batch from lists of rows.
            terms: Of the loss, by row; absent: the learned entries.
            is_shuffled: Whether the parts of the data are mixed, so that a limited evaluation has
                some of each; always in the same way.
        """
        self._rows = rows
        self._bins = bins
        self._numbers = np.arange(len(bins))
        if is_shuffled:
            self._numbers = shuffle(len(bins), seed=0, epoch=0)
        self._share = share
        self._collate = collate
        counts = rows.supervised_counts if terms is None else terms
        self.supervised_tokens = int(bins.sum(counts).sum())
        """Over all ranks and batches."""

    def __len__(self) -> int:
        """Count the batches of this rank, the same number on every rank."""
        return math.ceil(len(self._bins) / self._share.global_batch_size)

    def list_digests(self) -> list[int]:
        """List the examples that the sequences begin with; without packing, each has only one."""
        return [int(self._rows.digests[self._bins[n][0]]) for n in self._numbers.tolist()]

    def find_smallest_digests(self, count: int) -> list[int]:
        """Find the examples with the smallest digests, `count` of them at most."""
        return [int(digest) for digest in np.unique(self._rows.digests[self._bins.rows])[:count]]

    def eval_batches(self, limit: int | None = None) -> Iterator[Batch]:
        """Give this rank's batches in a fixed order; the last ones may be only padding.

        Args:
            limit: At most this many batches; None for all.
        """
        for batch in range(len(self) if limit is None else min(limit, len(self))):
            mine = self._numbers[self._share.mine(batch)]
            items = load_items(self._rows, self._bins, mine, count=self._share.micro_batch_size)
            yield self._collate(items)


def name_rows(rows: Rows, bins: Bins, numbers: Numbers, place: int) -> list[str]:
    """Say where the raw rows of the sequence `numbers[place]` stand."""
    return rows.load_origins(bins[numbers[place]])


def load_items(
    rows: Rows, bins: Bins, numbers: Numbers, *, count: int, draw: Sequence[int] = ()
) -> list[list[Row]]:
    """Load the sequences of `numbers`, and add empty ones until there are `count`."""
    items = [[rows.load_row(int(row), draw) for row in bins[number]] for number in numbers]
    return items + [[] for _ in range(count - len(items))]

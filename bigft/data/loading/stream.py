"""Training batches from data that are tokenised on the way and kept nowhere.

The raw rows of an epoch are cut into windows of 4,096. The rows of a window are tokenised, packed
and shuffled among themselves, and its sequences follow those of the window before it. A window
follows from its raw rows alone, so loading goes on anywhere after reading, but not tokenising,
what came before. Every rank reads and tokenises all rows: 5 MB/s per core go a long way.
"""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bigft.data.loading.collate import Batch
from bigft.data.loading.loader import (
    Collate,
    Samples,
    Share,
    StepBatches,
)
from bigft.data.loading.prefetch import run_ahead
from bigft.data.order.cursor import Cursor
from bigft.data.order.plan import pack_rows
from bigft.data.readers.raw import RawRow
from bigft.data.store.chunks import ChunkTokenizer, cut_into_chunks
from bigft.data.store.rejected import Rejected
from bigft.data.store.store import Chunk
from bigft.data.tokens.tokenize import Row
from bigft.errors import DataError

_WINDOW = 4096
"""Raw rows that are packed and shuffled together."""

_STEPS_AHEAD = 4

# transformers keeps a template compiled, and what it marks is state of that: streams of one process
# that share a template have to take turns.
_rendering = threading.Lock()

ReadRows = Callable[[], Iterator[RawRow]]


@dataclass(frozen=True)
class _Item:
    """One sequence, and the cursor of what follows it."""

    rows: list[Row]
    after: Cursor


class StreamLoader:
    """Training batches without end, in windows."""

    def __init__(
        self,
        parts: Sequence[ReadRows],
        tokenizer: ChunkTokenizer,
        share: Share,
        *,
        packing: str,
        max_length: int,
        seed: int,
        collate: Collate,
        reject: Callable[[list[Rejected]], None],
        runs_ahead: bool = True,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            parts: One reader of all raw rows for each part of the data, read one after the other.
            tokenizer: From raw rows to rows of tokens.
            share: What this rank gets of a step.
            packing: `none` or `best_fit`, within a window.
            max_length: Tokens per sequence.
            seed: Decides the order within a window together with epoch and window.
            collate: Makes a batch from lists of rows.
            reject: Told of raw rows that became no tokens; may raise.
            runs_ahead: Whether a thread prepares the next steps during a step.
        """
        self._parts = parts
        self._tokenizer = tokenizer
        self._share = share
        self._packing = packing
        self._max_length = max_length
        self._seed = seed
        self._collate = collate
        self._reject = reject
        self._runs_ahead = runs_ahead
        self.steps_per_epoch: int | None = None
        """Nobody knows before the end."""

    def steps_from(self, cursor: Cursor) -> Iterator[StepBatches]:
        """Give the batches of the step that begins at `cursor`, and of all that follow."""
        steps = self._build_steps(cursor)
        return run_ahead(steps, _STEPS_AHEAD) if self._runs_ahead else steps

    def _build_steps(self, cursor: Cursor) -> Iterator[StepBatches]:
        while True:
            items = self._read_epoch(cursor)
            is_empty = True
            while chosen := list(itertools.islice(items, self._share.global_batch_size)):
                is_empty = False
                yield self._build_step(chosen)
            if is_empty and cursor == Cursor(cursor.epoch):
                raise DataError("--data: no row of the stream has a token to learn")
            cursor = Cursor(cursor.epoch + 1)

    def _read_epoch(self, cursor: Cursor) -> Iterator[_Item]:
        raws = itertools.islice(self._read_raws(), cursor.row, None)
        start, skip = cursor.row, cursor.position
        window = list(itertools.islice(raws, _WINDOW))
        while window:
            # One row ahead, so that the last sequence of an epoch says that it is over.
            ahead = list(itertools.islice(raws, 1))
            at, start = Cursor(cursor.epoch, 0, start), start + len(window)
            behind = Cursor(cursor.epoch, 0, start) if ahead else Cursor(cursor.epoch + 1)
            yield from self._read_window(window, at, behind, skip=skip)
            window, skip = ahead and ahead + list(itertools.islice(raws, _WINDOW - 1)), 0

    def _read_raws(self) -> Iterator[tuple[int, RawRow]]:
        for source, read in enumerate(self._parts):
            for raw in read():
                yield source, raw

    def _read_window(
        self, entries: list[tuple[int, RawRow]], at: Cursor, behind: Cursor, *, skip: int
    ) -> Iterator[_Item]:
        rows: list[Row] = []
        for source, group in itertools.groupby(entries, key=lambda entry: entry[0]):
            for raws in cut_into_chunks(raw for _, raw in group):
                with _rendering:
                    chunk = self._tokenizer(raws)
                self._reject(chunk.rejected)
                rows += _split_rows(chunk, source, (self._seed, at.epoch, at.row + len(rows)))
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        bins = pack_rows(np.arange(len(rows)), lengths, self._packing, self._max_length)
        generator = np.random.Generator(np.random.PCG64([self._seed, at.epoch, at.row]))
        order = generator.permutation(len(bins)).tolist()
        for place, number in enumerate(order[skip:], skip + 1):
            after = behind if place == len(order) else Cursor(at.epoch, place, at.row)
            yield _Item([rows[row] for row in bins[number]], after)

    def _build_step(self, items: list[_Item]) -> StepBatches:
        rows = [item.rows for item in items]
        padded = rows + [[] for _ in range(self._share.global_batch_size - len(rows))]
        mine: list[Batch] = [
            self._collate(padded[self._share.mine(micro_step)])
            for micro_step in range(self._share.gradient_accumulation_steps)
        ]
        every = [row for sequence in rows for row in sequence]
        learned = np.array([np.count_nonzero(row.supervised) for row in every], dtype=np.int64)
        lengths = np.array([len(row) for row in every], dtype=np.int64)
        after = items[-1].after
        return StepBatches(
            micro_batches=mine,
            supervised_tokens=int(self._tokenizer.count(learned).sum()),
            tokens=int(self._tokenizer.count_tokens(lengths).sum()),
            # How long an epoch is, nobody knows: the number of complete ones.
            epoch=float(after.epoch),
            cursor=after,
            samples=Samples(
                self._share, [[row.origin for row in sequence] for sequence in rows].__getitem__,
                len(rows),
            ),
        )  # fmt: skip


def _split_rows(chunk: Chunk, source: int, draw: tuple[int, int, int]) -> Iterator[Row]:
    cuts = np.cumsum(chunk.lengths)[:-1]
    tokens, marks = np.split(chunk.tokens, cuts), np.split(chunk.supervised, cuts)
    if len(chunk.lengths):
        numbered = enumerate(zip(tokens, marks, chunk.origins, strict=True))
        for number, (ids, learned, origin) in numbered:
            yield Row(ids, learned, source=source, origin=origin, draw=(*draw, number))

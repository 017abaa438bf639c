"""The order of the data: the same for any ranks, workers and interruptions; no row lost or twice.

Every row says its own number in each of its tokens, so that what was trained on can be read back
from the batches of all ranks.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby, islice
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from bigft.data.layouts.next_token import NextToken
from bigft.data.loading.collate import Batch, collate_packed, collate_padded
from bigft.data.loading.loader import Collate, Loader, Share, StepBatches, StoreLoader
from bigft.data.loading.stream import StreamLoader
from bigft.data.order.cursor import Cursor
from bigft.data.order.pack import compute_utilisation, pack_best_fit
from bigft.data.order.plan import FixedPlan, MixedPlan, Plan, pack_rows
from bigft.data.order.select import open_selection
from bigft.data.readers.raw import RawRow
from bigft.data.section import DataSection, LoadingSection
from bigft.data.store.chunks import ChunkTokenizer
from bigft.data.store.prepare import refuse_bad_rows
from bigft.data.store.rows import Rows
from bigft.data.store.store import Chunk, StoreInfo, StoreWriter, TokenStore

MAX_LENGTH = 16
PART_ROWS = (90, 23)
EPOCHS = 3
SEED = 11
PAD = 0

Sequence_ = tuple[int, ...]
"""Numbers of the rows that share a sequence, in their order."""


@dataclass(frozen=True)
class Layout:
    """How a run is spread over ranks and micro-steps."""

    world_size: int
    micro_batch_size: int
    micro_steps: int
    num_workers: int = 0

    @property
    def global_batch_size(self) -> int:
        return self.world_size * self.micro_batch_size * self.micro_steps

    def share(self, rank: int) -> Share:
        return Share(self.micro_batch_size, self.micro_steps, rank, self.world_size)


ALONE = Layout(1, 8, 1)
LAYOUTS_OF_8 = [
    Layout(1, 8, 1, num_workers=2),
    Layout(1, 2, 4),
    Layout(2, 4, 1, num_workers=2),
    Layout(2, 2, 2),
    Layout(4, 2, 1),
    Layout(4, 1, 2, num_workers=2),
]
LAYOUTS_OF_ANY_SIZE = [*LAYOUTS_OF_8, Layout(1, 3, 1), Layout(4, 3, 1), Layout(2, 5, 2)]

Build = Callable[[Layout, int], Loader]
"""The loader of one rank."""

ReadRow = Callable[[list[int]], int]
"""The number of a row from its tokens."""


def run(build: Build, layout: Layout, cursor: Cursor, steps: int) -> Iterator[list[StepBatches]]:
    """Train all ranks side by side: for each step what every rank got."""
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(closing(build(layout, rank).steps_from(cursor)))  # type: ignore[type-var]
            for rank in range(layout.world_size)
        ]
        yield from (list(step) for step in islice(zip(*ranks, strict=True), steps))


def read_back(step: Sequence[StepBatches], read_row: ReadRow) -> list[Sequence_]:
    """Read the sequences of one step over all ranks in their global order; empty ones too."""
    assert len({rank.cursor for rank in step}) == 1
    assert len({(rank.tokens, rank.supervised_tokens, rank.epoch) for rank in step}) == 1
    every = [rank.micro_batches for rank in step]
    batches = list(chain.from_iterable(zip(*every, strict=True)))
    assert sum(batch.supervised_tokens for batch in batches) == step[0].supervised_tokens
    return [
        tuple(map(read_row, _split(batch, number)))
        for batch in batches
        for number in range(len(batch.input_ids))
    ]


def _split(batch: Batch, number: int) -> Iterator[list[int]]:
    """Cut a sequence where positions restart; padding is left out."""
    ids = batch.input_ids[number].tolist()
    starts = (batch.position_ids[number] == 0).cumsum(0).tolist()
    for _, places in groupby(range(len(ids)), key=starts.__getitem__):
        tokens = [ids[place] for place in places if ids[place] != PAD]
        if tokens:
            yield tokens


def count_steps(build: Build, layout: Layout = ALONE) -> int:
    """Count the steps of all epochs; those of weighted parts differ by a row or two."""
    with closing(run(build, layout, Cursor(), 1000)) as steps:
        return next(n for n, step in enumerate(steps, 1) if step[0].cursor.epoch == EPOCHS)


def list_sequences(
    build: Build, layout: Layout, read_row: ReadRow, steps: int
) -> list[list[Sequence_]]:
    return [read_back(step, read_row) for step in run(build, layout, Cursor(), steps)]


def flatten(steps: Sequence[Sequence[Sequence_]]) -> list[Sequence_]:
    """Join the steps; empty sequences only fill up the last step of an epoch."""
    return [sequence for step in steps for sequence in step if sequence]


def run_interrupted(
    build: Build, read_row: ReadRow, layouts: Sequence[Layout], *, seed: int
) -> list[Sequence_]:
    """Run in 11 pieces, each from the cursor that the piece before it left, each laid out anew."""
    chance = random.Random(seed)
    cursor, found = Cursor(), []
    for _ in range(11):
        for step in run(build, chance.choice(layouts), cursor, chance.randint(1, 4)):
            found.append(read_back(step, read_row))
            cursor = step[0].cursor
    return flatten(found)


# Rows of stores.


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Two parts; each token of row n is n + 1."""
    first, stores = 1, []
    for count in PART_ROWS:
        folder = tmp_path_factory.mktemp("store")
        numbers = np.arange(first, first + count)
        lengths = 2 + (7 * numbers) % 13
        tokens = np.repeat(numbers, lengths).astype(np.int32)
        starts = np.cumsum(lengths) - lengths
        supervised = np.ones(len(tokens), dtype=np.bool_)
        supervised[starts] = False
        with closing(StoreWriter(folder)) as writer:
            writer.append(
                Chunk(
                    tokens, supervised, lengths, (lengths - 1).astype(np.int32),
                    digests=(numbers * 32).astype(np.uint64), pieces=np.zeros(count, np.int32),
                    origins=[f"a.jsonl:{number}" for number in numbers],
                    signatures=None, rejected=[], info=StoreInfo(records=count),
                )
            )  # fmt: skip
            writer.finish()
        stores.append(TokenStore(folder))
        first += count
    return Rows(stores)


def read_stored(tokens: list[int]) -> int:
    assert len(set(tokens)) == 1
    return tokens[0] - 1


def choose_collate(packing: str, max_length: int) -> Collate:
    collate = collate_padded if packing == "none" else collate_packed
    return partial(collate, pad_id=PAD, max_length=max_length, num_sources=2)


def build_stored(rows: Rows, packing: str, weights: tuple[float, ...] | None) -> Build:
    pack = partial(pack_rows, lengths=rows.lengths, packing=packing, max_length=MAX_LENGTH)
    numbers = np.arange(len(rows))

    def build(layout: Layout, rank: int) -> StoreLoader:
        plan: Plan = FixedPlan(pack(numbers))
        if weights:
            parts = np.split(numbers, np.cumsum(PART_ROWS)[:-1])
            plan = MixedPlan(parts, rows.lengths, weights, pack, seed=SEED)
        return StoreLoader(
            rows,
            plan,
            layout.share(rank),
            seed=SEED,
            collate=choose_collate(packing, MAX_LENGTH),
            num_workers=layout.num_workers,
            order="by_length" if packing == "none" else "shuffled",
        )

    return build


@pytest.fixture(
    params=[
        pytest.param((packing, weights), id=f"{packing}-{'weighted' if weights else 'plain'}")
        for packing in ("best_fit", "none")
        for weights in (None, (1.0, 2.0))
    ]
)
def build(request: pytest.FixtureRequest, rows: Rows) -> Build:
    return build_stored(rows, *request.param)


@pytest.mark.parametrize("layout", LAYOUTS_OF_8, ids=str)
def test_every_step_sees_the_same_sequences_with_any_ranks_and_workers(
    build: Build, layout: Layout
) -> None:
    steps = count_steps(build)
    expected = list_sequences(build, ALONE, read_stored, steps)
    assert list_sequences(build, layout, read_stored, steps) == expected


@pytest.mark.parametrize(
    "layout", [ALONE, Layout(4, 1, 2, num_workers=2), Layout(2, 5, 2)], ids=str
)
@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_no_row_is_missing_and_none_comes_twice_in_an_epoch(
    rows: Rows, packing: str, layout: Layout
) -> None:
    build = build_stored(rows, packing, None)
    epochs: list[list[Sequence_]] = [[] for _ in range(EPOCHS)]
    before = Cursor()
    for step in run(build, layout, before, count_steps(build, layout)):
        epochs[before.epoch] += [sequence for sequence in read_back(step, read_stored) if sequence]
        before = step[0].cursor
    for sequences in epochs:
        assert sorted(chain.from_iterable(sequences)) == list(range(sum(PART_ROWS)))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("weights", [(1.0, 2.0), (5.0, 1.0)])
def test_weighted_parts_take_turns_through_all_their_rows(
    rows: Rows, weights: tuple[float, float]
) -> None:
    """A part that is larger than its share goes on in the next epoch where it stopped."""
    build = build_stored(rows, "best_fit", weights)
    found = flatten(list_sequences(build, ALONE, read_stored, 6 * count_steps(build)))
    counts = np.bincount(list(chain.from_iterable(found)), minlength=sum(PART_ROWS))
    for part in np.split(counts, np.cumsum(PART_ROWS)[:-1]):
        # One for a copy that is begun, one more for the epoch that is packed but not complete.
        assert part.min() >= 1
        assert part.max() - part.min() <= 2


@pytest.mark.parametrize("layouts", [LAYOUTS_OF_8, LAYOUTS_OF_ANY_SIZE], ids=["of_8", "any_size"])
@pytest.mark.parametrize("seed", range(5))
def test_a_run_interrupted_at_ten_places_sees_what_a_whole_run_sees(
    build: Build, layouts: list[Layout], seed: int
) -> None:
    found = run_interrupted(build, read_stored, layouts, seed=seed)
    # Smaller batches need more steps than larger ones; both give the same sequences.
    steps = list_sequences(build, ALONE, read_stored, 2 + len(found) // 4)
    assert found == flatten(steps)[: len(found)]
    assert len(found) > 40


def test_the_sequences_kept_of_a_mixture_are_those_that_would_be_packed(
    rows: Rows, tmp_path: Path
) -> None:
    section = DataSection(max_length=MAX_LENGTH, loading=LoadingSection(cache_dir=str(tmp_path)))
    for seed in (0, 1):
        selection = open_selection(rows, rows, [1.0, 2.0], section, seed=seed)
        kept = selection.build_plan(rows, section, seed=seed)
        packed = replace(selection, first=None).build_plan(rows, section, seed=seed)
        for epoch in range(3):
            one, other = kept.bins(epoch), packed.bins(epoch)
            assert [list(of) for of in one] == [list(of) for of in other]


# Rows of a stream.


@pytest.fixture(params=["best_fit", "none"])
def build_streamed(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    session_tokenizer: PreTrainedTokenizerFast,
) -> Build:
    """Two parts of 50 and 23 texts, in windows of 16 raw rows."""
    monkeypatch.setattr("bigft.data.loading.stream._WINDOW", 16)
    section = DataSection(packing=request.param, max_length=48, on_bad_row="skip")
    tokenizer = ChunkTokenizer(section, NextToken(session_tokenizer, section))

    def read(first: int, last: int) -> Iterator[RawRow]:
        for number in range(first, last):
            text = f"{number} {'and on ' * (number % 7)}"
            yield RawRow({"prompt": text, "response": "it goes"}, f"rows:{number}")

    def build(layout: Layout, rank: int) -> StreamLoader:
        return StreamLoader(
            [partial(read, 0, 50), partial(read, 50, 73)],
            tokenizer,
            layout.share(rank),
            packing=section.packing,
            max_length=section.max_length,
            seed=SEED,
            collate=choose_collate(section.packing, section.max_length),
            reject=refuse_bad_rows,
            runs_ahead=layout.num_workers > 0,
        )

    return build


@pytest.fixture
def read_streamed(session_tokenizer: PreTrainedTokenizerFast) -> ReadRow:
    def read(tokens: list[int]) -> int:
        found = re.search(r"\d+", session_tokenizer.decode(tokens))
        assert found
        return int(found[0])

    return read


@pytest.mark.parametrize("layout", LAYOUTS_OF_8, ids=str)
def test_a_stream_is_the_same_with_any_ranks_and_thread(
    build_streamed: Build, read_streamed: ReadRow, layout: Layout
) -> None:
    steps = count_steps(build_streamed)
    expected = list_sequences(build_streamed, ALONE, read_streamed, steps)
    assert list_sequences(build_streamed, layout, read_streamed, steps) == expected
    rows = list(chain.from_iterable(flatten(expected)))
    assert len(rows) == EPOCHS * 73
    for first in range(0, len(rows), 73):
        assert sorted(rows[first : first + 73]) == list(range(73))


@pytest.mark.parametrize("seed", range(2))
def test_an_interrupted_stream_goes_on_with_the_next_sequence(
    build_streamed: Build, read_streamed: ReadRow, seed: int
) -> None:
    found = run_interrupted(build_streamed, read_streamed, LAYOUTS_OF_ANY_SIZE, seed=seed)
    steps = list_sequences(build_streamed, ALONE, read_streamed, 3 + len(found) // 3)
    assert found == flatten(steps)[: len(found)]
    assert len(found) > 40


# How full sequences are.


@pytest.mark.parametrize("max_length", [512, 2048])
def test_sequences_of_texts_of_all_lengths_are_at_least_97_percent_full(max_length: int) -> None:
    lengths = np.random.default_rng(0).lognormal(4.8, 0.9, 20_000).astype(np.int64)
    lengths = lengths.clip(2, max_length)
    bins = pack_best_fit(lengths, max_length)
    assert compute_utilisation(lengths, len(bins), max_length) >= 0.97

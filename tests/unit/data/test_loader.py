from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigft.data.collate import collate_packed
from bigft.data.loader import EvalLoader, Loader, StepBatches
from bigft.data.pack import Bins, pack_best_fit
from bigft.data.store import TokenStore

LENGTHS = [2 + (7 * number) % 13 for number in range(60)]
COLLATE = partial(collate_packed, pad_id=0, max_length=16)


@pytest.fixture(scope="module")
def store(make_store: Callable[[Sequence[int]], TokenStore]) -> TokenStore:
    return make_store(LENGTHS)


@pytest.fixture(scope="module")
def bins(store: TokenStore) -> Bins:
    return pack_best_fit(store.lengths, 16)


def build(
    store: TokenStore, bins: Bins, split: tuple[int, int, int], rank: int, **more: bool
) -> Loader:
    world_size, micro_steps, micro_batch_size = split
    return Loader(
        store,
        bins,
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=micro_steps,
        rank=rank,
        world_size=world_size,
        seed=3,
        collate=COLLATE,
        **more,
    )


def find_sequences(steps: Sequence[StepBatches]) -> list[tuple[int, ...]]:
    """List the tokens of each sequence of one step over all ranks, in the global order."""
    found = []
    for micro_batches in zip(*(step.micro_batches for step in steps), strict=True):
        for batch in micro_batches:
            for ids, positions in zip(batch.input_ids, batch.position_ids, strict=True):
                assert len(ids) == len(positions)
                found.append(tuple(token for token in ids.tolist() if token != 0))
    return found


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1, 2, 4, 6, 12]), st.data())
def test_the_global_order_does_not_depend_on_how_a_step_is_divided(
    store: TokenStore, bins: Bins, size: int, data: st.DataObject
) -> None:
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    world_size = data.draw(st.sampled_from(divisors))
    micro_steps = data.draw(st.sampled_from([d for d in divisors if size // world_size % d == 0]))
    split = (world_size, micro_steps, size // world_size // micro_steps)
    start = data.draw(st.integers(0, 100))
    whole = islice(build(store, bins, (1, 1, size), 0).steps_from(start), 4)
    ranks = [build(store, bins, split, rank).steps_from(start) for rank in range(world_size)]
    for expected in whole:
        steps = [next(rank) for rank in ranks]
        assert find_sequences(steps) == find_sequences([expected])
        assert {(step.tokens, step.supervised_tokens, step.epoch) for step in steps} == {
            (expected.tokens, expected.supervised_tokens, expected.epoch)
        }


@pytest.mark.parametrize("split", [(1, 1, 1), (2, 2, 3), (4, 1, 2), (1, 1, 1000)])
def test_each_row_comes_once_per_epoch_and_the_last_step_is_filled_up(
    store: TokenStore, bins: Bins, split: tuple[int, int, int]
) -> None:
    loaders = [build(store, bins, split, rank) for rank in range(split[0])]
    steps_per_epoch = loaders[0].steps_per_epoch
    assert steps_per_epoch == -(-len(bins) // loaders[0].global_batch_size)
    iterators = [loader.steps_from(0) for loader in loaders]
    for _ in range(2):
        seen: list[tuple[int, ...]] = []
        for _ in range(steps_per_epoch):
            steps = [next(iterator) for iterator in iterators]
            sequences = find_sequences(steps)
            assert len(sequences) == loaders[0].global_batch_size
            seen += [sequence for sequence in sequences if sequence]
        expected = [
            tuple(t for row in rows for t in store.load_row(row).input_ids.tolist() if t != 0)
            for rows in bins
        ]
        assert sorted(seen) == sorted(expected)


def test_counts_of_a_step_are_those_of_all_ranks(store: TokenStore, bins: Bins) -> None:
    ranks = [build(store, bins, (2, 2, 3), rank).steps_from(0) for rank in range(2)]
    for _ in range(5):
        steps = [next(rank) for rank in ranks]
        supervised = sum(b.supervised_tokens for step in steps for b in step.micro_batches)
        assert [step.supervised_tokens for step in steps] == [supervised] * 2
    total = sum(
        step.tokens for step in islice(build(store, bins, (1, 1, 1), 0).steps_from(0), len(bins))
    )
    assert total == sum(LENGTHS)


def test_any_step_can_be_the_first(store: TokenStore, bins: Bins) -> None:
    loader = build(store, bins, (1, 2, 3), 0)
    straight = list(islice(loader.steps_from(0), 12))
    for start in (1, loader.steps_per_epoch - 1, loader.steps_per_epoch, 9):
        resumed = next(loader.steps_from(start))
        assert find_sequences([resumed]) == find_sequences([straight[start]])
        assert resumed.epoch == straight[start].epoch == (start + 1) / loader.steps_per_epoch


def test_epochs_differ_only_when_they_are_shuffled(store: TokenStore, bins: Bins) -> None:
    for shuffled in (True, False):
        loader = build(store, bins, (1, 1, len(bins)), 0, epochs_shuffled=shuffled)
        one, two = (find_sequences([step]) for step in islice(loader.steps_from(0), 2))
        assert (one != two) == shuffled
        assert sorted(one) == sorted(two)


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 1), (2, 3), (4, 100)])
def test_evaluation_gives_each_sequence_once_and_every_rank_as_many_batches(
    store: TokenStore, bins: Bins, world_size: int, batch_size: int
) -> None:
    loaders = [
        EvalLoader(
            store, bins, batch_size=batch_size, rank=rank, world_size=world_size, collate=COLLATE
        )
        for rank in range(world_size)
    ]
    batches = [list(loader.eval_batches()) for loader in loaders]
    assert {len(of_rank) for of_rank in batches} == {len(loaders[0])}
    supervised = sum(batch.supervised_tokens for of_rank in batches for batch in of_rank)
    assert supervised == loaders[0].supervised_tokens == store.supervised_counts.sum()
    tokens = [t for of_rank in batches for b in of_rank for t in b.input_ids.flatten().tolist()]
    expected = np.concatenate([store.load_row(row).input_ids for row in range(len(store))])
    assert sorted(t for t in tokens if t) == sorted(t for t in expected.tolist() if t)

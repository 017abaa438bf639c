from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigft.data.loading.collate import collate_packed
from bigft.data.loading.loader import EvalLoader, Share, StepBatches, StoreLoader
from bigft.data.order.cursor import Cursor
from bigft.data.order.pack import Bins
from bigft.data.order.plan import FixedPlan, MixedPlan, Plan, pack_rows
from bigft.data.store.rows import Rows
from bigft.data.store.store import TokenStore

LENGTHS = [2 + (7 * number) % 13 for number in range(60)]
COLLATE = partial(collate_packed, pad_id=0, max_length=16)


PACK = partial(pack_rows, packing="best_fit", max_length=16)


@pytest.fixture(scope="module")
def rows(make_store: Callable[[Sequence[int]], TokenStore]) -> Rows:
    return Rows([make_store(LENGTHS)])


@pytest.fixture(scope="module")
def bins(rows: Rows) -> Bins:
    return PACK(np.arange(len(rows)), rows.lengths)


@pytest.fixture(scope="module", params=["fixed", "mixed"])
def plan(request: pytest.FixtureRequest, rows: Rows, bins: Bins) -> Plan:
    if request.param == "fixed":
        return FixedPlan(bins)
    parts = [np.arange(20), np.arange(20, 60)]
    return MixedPlan(parts, rows.lengths, [2.0, 1.0], partial(PACK, lengths=rows.lengths), seed=3)


def build(
    rows: Rows, plan: Plan, split: tuple[int, int, int], rank: int = 0, **more: Any
) -> StoreLoader:
    world_size, micro_steps, micro_batch_size = split
    share = Share(micro_batch_size, micro_steps, rank, world_size)
    return StoreLoader(rows, plan, share, seed=3, collate=COLLATE, **more)


def find_sequences(steps: Sequence[StepBatches]) -> list[tuple[int, ...]]:
    """List the tokens of each sequence of one step over all ranks, in the global order."""
    found = []
    for micro_batches in zip(*(step.micro_batches for step in steps), strict=True):
        for batch in micro_batches:
            for ids, positions in zip(batch.input_ids, batch.position_ids, strict=True):
                assert len(ids) == len(positions)
                found.append(tuple(token for token in ids.tolist() if token != 0))
    return found


def find_tokens(rows: Rows, bins: Bins) -> list[tuple[int, ...]]:
    return [
        tuple(t for row in chosen for t in rows.load_row(int(row)).input_ids.tolist() if t != 0)
        for chosen in bins
    ]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1, 2, 4, 6, 12]), st.data())
def test_the_global_order_does_not_depend_on_how_a_step_is_divided(
    rows: Rows, plan: Plan, size: int, data: st.DataObject
) -> None:
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    world_size = data.draw(st.sampled_from(divisors))
    micro_steps = data.draw(st.sampled_from([d for d in divisors if size // world_size % d == 0]))
    split = (world_size, micro_steps, size // world_size // micro_steps)
    start = Cursor(data.draw(st.integers(0, 3)), data.draw(st.integers(0, 20)))
    order = data.draw(st.sampled_from(["shuffled", "by_length", "given"]))
    whole = islice(build(rows, plan, (1, 1, size), order=order).steps_from(start), 4)
    ranks = [
        build(rows, plan, split, rank, order=order, num_workers=rank % 2).steps_from(start)
        for rank in range(world_size)
    ]
    for expected in whole:
        steps = [next(rank) for rank in ranks]
        assert find_sequences(steps) == find_sequences([expected])
        assert {(s.tokens, s.supervised_tokens, s.epoch, s.cursor) for s in steps} == {
            (expected.tokens, expected.supervised_tokens, expected.epoch, expected.cursor)
        }


@pytest.mark.parametrize("split", [(1, 1, 1), (2, 2, 3), (4, 1, 2), (1, 1, 1000)])
def test_each_sequence_comes_once_per_epoch_and_the_last_step_is_filled_up(
    rows: Rows, plan: Plan, split: tuple[int, int, int]
) -> None:
    loaders = [build(rows, plan, split, rank) for rank in range(split[0])]
    size = split[0] * split[1] * split[2]
    assert loaders[0].steps_per_epoch == -(-len(plan.bins(0)) // size)
    iterators = [loader.steps_from(Cursor()) for loader in loaders]
    for epoch in range(2):
        seen: list[tuple[int, ...]] = []
        for _ in range(-(-len(plan.bins(epoch)) // size)):
            steps = [next(iterator) for iterator in iterators]
            sequences = find_sequences(steps)
            assert len(sequences) == size
            seen += [sequence for sequence in sequences if sequence]
        assert sorted(seen) == sorted(find_tokens(rows, plan.bins(epoch)))
        assert steps[0].cursor == Cursor(epoch + 1)
        assert steps[0].epoch == epoch + 1


def test_counts_of_a_step_are_those_of_all_ranks(rows: Rows, bins: Bins) -> None:
    plan = FixedPlan(bins)
    ranks = [build(rows, plan, (2, 2, 3), rank).steps_from(Cursor()) for rank in range(2)]
    for _ in range(5):
        steps = [next(rank) for rank in ranks]
        supervised = sum(b.supervised_tokens for step in steps for b in step.micro_batches)
        assert [step.supervised_tokens for step in steps] == [supervised] * 2
    every = islice(build(rows, plan, (1, 1, 1)).steps_from(Cursor()), len(bins))
    assert sum(step.tokens for step in every) == sum(LENGTHS)


def test_any_step_can_be_the_first(rows: Rows, plan: Plan) -> None:
    loader = build(rows, plan, (1, 2, 3))
    straight = list(islice(loader.steps_from(Cursor()), 20))
    assert straight[-1].cursor.epoch >= 2
    for before, expected in zip(straight, straight[1:], strict=False):
        resumed = next(loader.steps_from(before.cursor))
        assert find_sequences([resumed]) == find_sequences([expected])
        assert (resumed.epoch, resumed.cursor) == (expected.epoch, expected.cursor)


def test_a_run_goes_on_with_another_batch_size(rows: Rows, plan: Plan) -> None:
    """The next sequence is the same, whatever a step takes from there on."""
    step = next(build(rows, plan, (1, 2, 3)).steps_from(Cursor()))
    rest = next(build(rows, plan, (1, 1, 5)).steps_from(step.cursor))
    whole = next(build(rows, plan, (1, 1, 11)).steps_from(Cursor()))
    assert find_sequences([step]) + find_sequences([rest]) == find_sequences([whole])


def test_epochs_differ_only_when_they_are_shuffled(rows: Rows, bins: Bins) -> None:
    for order in ("shuffled", "by_length", "given"):
        loader = build(rows, FixedPlan(bins), (1, 1, len(bins)), order=order)
        one, two = (find_sequences([step]) for step in islice(loader.steps_from(Cursor()), 2))
        assert (one != two) == (order != "given")
        assert sorted(one) == sorted(two)
        if order == "given":
            assert one == find_tokens(rows, bins)


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 1), (2, 3), (4, 100)])
def test_evaluation_gives_each_sequence_once_and_every_rank_as_many_batches(
    rows: Rows, bins: Bins, world_size: int, batch_size: int
) -> None:
    loaders = [
        EvalLoader(rows, bins, Share(batch_size, rank=rank, world_size=world_size), collate=COLLATE)
        for rank in range(world_size)
    ]
    batches = [list(loader.eval_batches()) for loader in loaders]
    assert {len(of_rank) for of_rank in batches} == {len(loaders[0])}
    supervised = sum(batch.supervised_tokens for of_rank in batches for batch in of_rank)
    assert supervised == loaders[0].supervised_tokens == rows.supervised_counts.sum()
    tokens = [t for of_rank in batches for b in of_rank for t in b.input_ids.flatten().tolist()]
    expected = np.concatenate([rows.load_row(row).input_ids for row in range(len(rows))])
    assert sorted(t for t in tokens if t) == sorted(t for t in expected.tolist() if t)


def test_an_evaluation_can_be_cut_short(rows: Rows, bins: Bins) -> None:
    loader = EvalLoader(rows, bins, Share(2), collate=COLLATE)
    whole = list(loader.eval_batches())
    short = list(loader.eval_batches(limit=3))
    assert len(short) == 3 < len(whole)
    for one, other in zip(short, whole, strict=False):
        assert one.input_ids.tolist() == other.input_ids.tolist()
    assert len(list(loader.eval_batches(limit=10_000))) == len(whole)

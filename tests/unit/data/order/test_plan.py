from functools import partial

import numpy as np
import pytest

from bigft.data.order.mixture import choose_rows
from bigft.data.order.pack import Bins, pack_best_fit
from bigft.data.order.plan import EpisodePlan, FixedPlan, MixedPlan, pack_rows

LENGTHS = np.arange(60) % 9 + 1


def test_a_fixed_plan_is_the_same_in_every_epoch() -> None:
    bins = pack_best_fit(LENGTHS, 16)
    plan = FixedPlan(bins)
    assert plan.bins(0) is plan.bins(7) is bins


def test_a_mixed_plan_packs_what_the_mixture_chose() -> None:
    parts = [np.arange(10), np.arange(10, 60)]
    pack = partial(pack_rows, lengths=LENGTHS, packing="best_fit", max_length=16)
    plan = MixedPlan(parts, LENGTHS, [1.0, 1.0], pack, seed=4)
    for epoch in (3, 0, 1, 3):
        bins = plan.bins(epoch)
        chosen = choose_rows(parts, LENGTHS, [1.0, 1.0], seed=4, epoch=epoch)
        assert sorted(bins.rows.tolist()) == sorted(chosen.tolist())
        assert bins.sum(LENGTHS).max() <= 16
    assert plan.bins(0).rows.tolist() != plan.bins(1).rows.tolist()


@pytest.mark.parametrize("packing", ["none", "best_fit"])
def test_some_rows_are_packed_under_their_own_numbers(packing: str) -> None:
    rows = np.array([50, 3, 17, 4])
    bins = pack_rows(rows, LENGTHS, packing, 16)
    assert sorted(bins.rows.tolist()) == sorted(rows.tolist())
    assert bins.sum(LENGTHS).max() <= 16
    assert (len(bins) == 4) == (packing == "none")
    assert len(pack_rows(rows[:0], LENGTHS, packing, 16)) == 0


def test_sequences_are_taken_in_any_order() -> None:
    bins = Bins(np.array([7, 3, 9, 1, 5]), np.array([0, 2, 3, 5]))
    taken = bins.take(np.array([2, 0, 2]))
    assert [rows.tolist() for rows in taken] == [[1, 5], [7, 3], [1, 5]]
    assert len(bins.take(np.array([], dtype=np.int64))) == 0


def test_an_episode_is_of_one_part_and_shuffled() -> None:
    parts = [pack_rows(np.arange(*ends), LENGTHS, "best_fit", 9) for ends in ((0, 40), (40, 44))]
    plan = EpisodePlan(parts, [1.0, 1.0], length=6, seed=3)
    drawn = []
    for epoch in range(40):
        sequences = [tuple(rows.tolist()) for rows in plan.bins(epoch)]
        # As many as there are, filled up to whole episodes.
        assert len(sequences) == -(-sum(map(len, parts)) // 6) * 6
        for at in range(0, len(sequences), 6):
            episode = sequences[at : at + 6]
            of = {row >= 40 for rows in episode for row in rows}
            assert len(of) == 1
            part = int(of.pop())
            drawn.append(part)
            # None comes again before all of its part have come.
            assert len(set(episode)) == min(6, len(parts[part]))
    assert 0.4 < np.mean(drawn) < 0.6


def test_episodes_follow_from_seed_and_epoch_alone_and_from_weights() -> None:
    parts = [pack_rows(np.arange(*ends), LENGTHS, "none", 9) for ends in ((0, 20), (20, 60))]

    def build(seed: int, weights: list[float]) -> EpisodePlan:
        return EpisodePlan(parts, weights, length=4, seed=seed)

    one, other = build(1, [1.0, 1.0]), build(1, [1.0, 1.0])
    for epoch in (5, 0, 3):
        assert one.bins(epoch).rows.tolist() == other.bins(epoch).rows.tolist()
    assert one.bins(0).rows.tolist() != one.bins(1).rows.tolist()
    assert one.bins(0).rows.tolist() != build(2, [1.0, 1.0]).bins(0).rows.tolist()
    often = build(1, [3.0, 1.0])
    share = np.mean([(often.bins(epoch).rows < 20).mean() for epoch in range(60)])
    assert share == pytest.approx(0.75, abs=0.05)

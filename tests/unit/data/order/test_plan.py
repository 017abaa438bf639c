from functools import partial

import numpy as np
import pytest

from bigft.data.order.mixture import choose_rows
from bigft.data.order.pack import pack_best_fit
from bigft.data.order.plan import FixedPlan, MixedPlan, pack_rows

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

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigft.data.order.pack import Bins, compute_utilisation, pack_best_fit, pack_none

lengths_and_max = st.integers(1, 64).flatmap(
    lambda longest: st.tuples(st.lists(st.integers(1, longest), max_size=80), st.just(longest))
)


def pack_plainly(lengths: list[int], max_length: int) -> list[list[int]]:
    """Best fit decreasing as the textbook has it, in quadratic time."""
    bins: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        rooms = [max_length - sum(lengths[other] for other in rows) for rows in bins]
        fitting = [number for number, room in enumerate(rooms) if room >= lengths[row]]
        if fitting:
            bins[min(fitting, key=lambda number: rooms[number])].append(row)
        else:
            bins.append([row])
    return bins


@given(lengths_and_max)
def test_every_row_is_packed_once_and_no_sequence_is_too_long(
    case: tuple[list[int], int],
) -> None:
    lengths, max_length = np.array(case[0], dtype=np.int64), case[1]
    bins = pack_best_fit(lengths, max_length)
    rows = [row for rows in bins for row in rows.tolist()]
    assert sorted(rows) == list(range(len(lengths)))
    assert all(0 < lengths[rows].sum() <= max_length for rows in bins)


@given(lengths_and_max)
def test_sequences_are_filled_as_by_the_textbook(case: tuple[list[int], int]) -> None:
    lengths, max_length = np.array(case[0], dtype=np.int64), case[1]
    found = sorted(int(lengths[rows].sum()) for rows in pack_best_fit(lengths, max_length))
    assert found == sorted(int(lengths[rows].sum()) for rows in pack_plainly(case[0], max_length))


@given(lengths_and_max)
def test_the_number_of_sequences_is_near_the_smallest_possible(
    case: tuple[list[int], int],
) -> None:
    lengths, max_length = np.array(case[0], dtype=np.int64), case[1]
    smallest = math.ceil(lengths.sum() / max_length)
    num_bins = len(pack_best_fit(lengths, max_length))
    # Two sequences that are both at most half full would share one.
    assert smallest <= num_bins <= max(1, 2 * smallest)


def test_packing_is_the_same_every_time_and_fills_mixed_lengths() -> None:
    lengths = np.random.default_rng(0).integers(5, 1025, 20_000)
    bins = pack_best_fit(lengths, 1024)
    again = pack_best_fit(lengths, 1024)
    assert all(np.array_equal(one, other) for one, other in zip(bins, again, strict=True))
    assert compute_utilisation(lengths, len(bins), 1024) > 0.97


@pytest.mark.parametrize("lengths", [[5, 9], [0, 3]])
def test_rows_that_fit_nowhere_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=r"not 1\.\.8"):
        pack_best_fit(np.array(lengths), 8)


def test_no_packing_gives_each_row_its_own_sequence() -> None:
    bins = pack_none(np.array([3, 1, 2]))
    assert [rows.tolist() for rows in bins] == [[0], [1], [2]]
    assert compute_utilisation(np.array([3, 1, 2]), 3, 4) == 0.5


@given(lengths_and_max)
def test_sums_over_sequences_are_plain_sums(case: tuple[list[int], int]) -> None:
    lengths = np.array(case[0], dtype=np.int32)
    bins = pack_best_fit(lengths, case[1])
    assert bins.sum(lengths).tolist() == [sum(lengths[row] for row in rows) for rows in bins]


def test_sums_do_not_run_over() -> None:
    bins = Bins(np.arange(2), np.array([0, 2]))
    assert bins.sum(np.array([2**31 - 1] * 2, dtype=np.int32)).tolist() == [2**32 - 2]


def test_picked_rows_keep_their_company() -> None:
    bins = pack_best_fit(np.array([5, 3, 5, 2]), 8)
    names = np.array([70, 71, 72, 73])
    picked = [rows.tolist() for rows in bins.pick(names)]
    assert picked == [[70 + row for row in rows] for rows in bins]
    assert sorted(sum(picked, [])) == names.tolist()

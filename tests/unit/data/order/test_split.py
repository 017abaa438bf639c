import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bigft.data.order.split import split_by_digest

# Multiples of 32 stand for examples, what lies between for their changed copies.
examples = st.integers(0, 2**59 - 1).map(lambda number: 32 * number)
digests_of = st.lists(examples, max_size=50)


def split(
    digests: list[int], eval_fraction: float, test_fraction: float = 0.0
) -> tuple[list[int], list[int], list[int]]:
    found = split_by_digest(np.array(digests, dtype=np.uint64), eval_fraction, test_fraction)
    return found.train.tolist(), found.evaluation.tolist(), found.test.tolist()


@given(digests_of, st.floats(0, 0.99))
def test_every_row_is_on_one_side_and_no_side_is_empty(digests: list[int], fraction: float) -> None:
    train, held_out, test = split(digests, fraction)
    assert sorted(train + held_out) == list(range(len(digests)))
    assert not test
    if len(digests) >= 2 and fraction > 0:
        assert train
        assert held_out
    else:
        assert not held_out


@given(digests_of, st.floats(0, 0.5), st.floats(0, 0.4))
def test_three_sides_share_no_row(digests: list[int], eval_fraction: float, test: float) -> None:
    sides = split(digests, eval_fraction, test)
    assert sorted(sum(sides, [])) == list(range(len(digests)))


@given(st.lists(st.tuples(examples, st.integers(0, 31)), min_size=2, max_size=30))
def test_changed_copies_are_never_held_out_and_keep_the_side_of_their_example(
    pairs: list[tuple[int, int]],
) -> None:
    digests = [example + copy for example, copy in pairs]
    train, held_out, test = split(digests, 0.3, 0.3)
    assert not any(pairs[row][1] for row in held_out + test)
    # A copy of a held-out example in the training data would teach what is asked later.
    asked = {pairs[row][0] for row in held_out + test}
    if len({example for example, _ in pairs}) > 1:
        assert asked.isdisjoint(pairs[row][0] for row in train)


def test_a_row_stays_on_its_side_when_others_come_and_go() -> None:
    digests = np.random.default_rng(0).integers(0, 2**59, 5000, dtype=np.uint64) * np.uint64(32)
    before = split_by_digest(digests, 0.1, 0.2)
    assert 400 < len(before.evaluation) < 600
    assert 850 < len(before.test) < 1150
    order = np.random.default_rng(1).permutation(5000)[:3000]
    after = split_by_digest(digests[order], 0.1, 0.2)
    for side in ("evaluation", "test"):
        expected = set(digests[getattr(before, side)]) & set(digests[order])
        assert set(digests[order][getattr(after, side)]) == expected


def test_equal_examples_stay_together_where_they_can() -> None:
    assert split([64, 2**62, 64, 2**63], 0.001) == ([1, 3], [0, 2], [])
    assert split([64, 64, 64], 0.5) == ([0, 1], [2], [])

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bigft.data.split import split_by_digest

digests_of = st.lists(st.integers(0, 2**64 - 1), max_size=50)


def split(digests: list[int], fraction: float) -> tuple[list[int], list[int]]:
    train, held_out = split_by_digest(np.array(digests, dtype=np.uint64), fraction)
    return train.tolist(), held_out.tolist()


@given(digests_of, st.floats(0, 0.99))
def test_every_row_is_on_one_side_and_no_side_is_empty(digests: list[int], fraction: float) -> None:
    train, held_out = split(digests, fraction)
    assert sorted(train + held_out) == list(range(len(digests)))
    if len(digests) >= 2 and fraction > 0:
        assert train
        assert held_out
    else:
        assert not held_out


def test_a_row_stays_on_its_side_when_others_come_and_go() -> None:
    digests = np.random.default_rng(0).integers(0, 2**64 - 1, 5000, dtype=np.uint64)
    _, before = split_by_digest(digests, 0.1)
    assert 400 < len(before) < 600
    order = np.random.default_rng(1).permutation(5000)[:3000]
    _, after = split_by_digest(digests[order], 0.1)
    assert set(digests[order][after]) == set(digests[before]) & set(digests[order])


def test_equal_examples_stay_together_where_they_can() -> None:
    assert split([7, 2**62, 7, 2**63], 0.001) == ([1, 3], [0, 2])
    assert split([7, 7, 7], 0.5) == ([0, 1], [2])

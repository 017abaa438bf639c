"""How much of each part an epoch takes, against counting row by row."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigft.data.order.mixture import choose_rows

EPOCHS = 6


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[list[np.ndarray], np.ndarray, list[float], int]:
    sizes = draw(st.lists(st.integers(1, 25), min_size=1, max_size=4))
    count = sum(sizes)
    lengths = draw(st.lists(st.integers(1, 40), min_size=count, max_size=count))
    weights = draw(st.lists(st.floats(0.05, 20), min_size=len(sizes), max_size=len(sizes)))
    parts = np.split(np.arange(count), np.cumsum(sizes)[:-1])
    return parts, np.array(lengths), weights, draw(st.integers(0, 2**32 - 1))


def count_tokens(rows: np.ndarray, part: np.ndarray, lengths: np.ndarray) -> int:
    return int(lengths[rows[np.isin(rows, part)]].sum())


@settings(max_examples=150)
@given(mixtures())
def test_each_part_gives_its_share_of_the_tokens_give_or_take_a_row(
    mixture: tuple[list[np.ndarray], np.ndarray, list[float], int],
) -> None:
    parts, lengths, weights, seed = mixture
    so_far = np.zeros(len(parts))
    for epoch in range(EPOCHS):
        rows = choose_rows(parts, lengths, weights, seed=seed, epoch=epoch)
        found = np.array([count_tokens(rows, part, lengths) for part in parts])
        shares = lengths.sum() * np.array(weights) / sum(weights)
        longest = np.array([lengths[part].max() for part in parts])
        assert (np.abs(found - shares) <= longest + 1e-6).all()
        # Errors do not add up over epochs.
        so_far += found
        assert (np.abs(so_far - (epoch + 1) * shares) <= longest + 1e-6).all()


@settings(max_examples=150)
@given(mixtures())
def test_over_the_epochs_no_row_is_used_more_often_than_another_of_its_part(
    mixture: tuple[list[np.ndarray], np.ndarray, list[float], int],
) -> None:
    """However large or small a part is: it is gone through before it is begun again."""
    parts, lengths, weights, seed = mixture
    uses: Counter[int] = Counter()
    for epoch in range(EPOCHS):
        rows = choose_rows(parts, lengths, weights, seed=seed, epoch=epoch)
        uses.update(rows.tolist())
        for part in parts:
            counts = [uses[row] for row in part.tolist()]
            assert max(counts) - min(counts) <= 1


def test_a_small_part_is_repeated_and_a_large_one_goes_on_where_it_was() -> None:
    small, large = np.arange(10), np.arange(10, 1000)
    lengths = np.full(1000, 7)
    epochs = [
        choose_rows([small, large], lengths, [1, 1], seed=1, epoch=epoch) for epoch in range(2)
    ]
    for rows in epochs:
        counts = Counter(rows[rows < 10].tolist())
        assert counts == dict.fromkeys(range(10), 50)
    first, second = (set(rows[rows >= 10].tolist()) for rows in epochs)
    assert len(first) == 500
    # The last 10 of the second 500 begin a repetition, in an order of its own.
    assert len(first & second) <= 10
    assert len(first | second) >= 980


def test_a_small_part_is_shuffled_anew_for_each_repetition() -> None:
    """Else an epoch that ends within a repetition would always leave out the same rows."""
    parts = [np.arange(40), np.arange(40, 60)]
    left_out = []
    for epoch in range(0, 8, 2):
        # A half of it in each epoch: of every second one, a half that begins a repetition.
        rows = choose_rows(parts, np.ones(60, dtype=np.int64), [1, 2], seed=0, epoch=epoch)
        left_out.append(frozenset(range(40)) - set(rows.tolist()))
        assert len(left_out[-1]) == 20
    assert len(set(left_out)) == 4


def test_the_choice_follows_from_seed_and_epoch_alone() -> None:
    parts, lengths = [np.arange(30), np.arange(30, 50)], np.arange(50) % 7 + 1

    def choose(seed: int, epoch: int) -> list[int]:
        return choose_rows(parts, lengths, [1, 5], seed=seed, epoch=epoch).tolist()

    later = choose(1, 7)
    choose(1, 0)
    assert choose(1, 7) == later
    assert choose(2, 7) != later
    assert choose(1, 8) != later


@pytest.mark.parametrize("weights", [[1, 3], [0.25, 0.75], [1e-6, 3e-6]])
def test_only_the_ratio_of_the_weights_counts(weights: list[float]) -> None:
    parts, lengths = [np.arange(30), np.arange(30, 50)], np.arange(50) % 7 + 1
    found = choose_rows(parts, lengths, weights, seed=0, epoch=0)
    expected = choose_rows(parts, lengths, [4, 12], seed=0, epoch=0)
    assert found.tolist() == expected.tolist()

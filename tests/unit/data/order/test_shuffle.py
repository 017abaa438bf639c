import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigft.data.order.shuffle import shuffle, shuffle_by_length


def count_padding(lengths: np.ndarray, order: np.ndarray, batch: int) -> int:
    """Count the tokens that fill up batches to the longest of each."""
    cut = lengths[order][: len(order) // batch * batch].reshape(-1, batch)
    return int((cut.max(1, keepdims=True) - cut).sum())


@given(st.lists(st.integers(1, 300), max_size=300), st.integers(0, 2**40), st.integers(0, 9))
def test_each_sequence_comes_once(lengths: list[int], seed: int, epoch: int) -> None:
    everything = list(range(len(lengths)))
    assert sorted(shuffle(len(lengths), seed=seed, epoch=epoch)) == everything
    by_length = shuffle_by_length(np.array(lengths, dtype=np.int64), seed=seed, epoch=epoch)
    assert sorted(by_length) == everything


def test_more_sequences_than_a_window_come_once_too() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 10_000)
    order = shuffle_by_length(lengths, seed=0, epoch=0)
    assert np.array_equal(np.sort(order), np.arange(10_000))


@pytest.mark.parametrize("batch", [2, 4, 8, 32])
def test_neighbours_of_similar_length_save_most_of_the_padding(batch: int) -> None:
    lengths = np.random.default_rng(0).lognormal(5, 0.8, 8192).astype(np.int64) + 1
    plain = count_padding(lengths, shuffle(len(lengths), seed=1, epoch=0), batch)
    sorted_ = count_padding(lengths, shuffle_by_length(lengths, seed=1, epoch=0), batch)
    assert sorted_ < 0.15 * plain


def test_the_order_by_length_is_random_as_a_whole() -> None:
    """Long sequences must not all come at one end of the epoch."""
    lengths = np.random.default_rng(0).integers(1, 1000, 4096 * 4)
    order = shuffle_by_length(lengths, seed=1, epoch=0)
    means = lengths[order].reshape(4, -1).mean(1)
    assert np.ptp(means) < 50
    blocks = lengths[order].reshape(-1, 64).mean(1)
    assert abs(np.corrcoef(blocks, np.arange(len(blocks)))[0, 1]) < 0.2


@pytest.mark.parametrize("by_length", [False, True])
def test_the_order_follows_from_seed_and_epoch_alone(by_length: bool) -> None:
    lengths = np.arange(500) % 37

    def draw(seed: int, epoch: int) -> list[int]:
        if by_length:
            return shuffle_by_length(lengths, seed=seed, epoch=epoch).tolist()
        return shuffle(500, seed=seed, epoch=epoch).tolist()

    assert draw(1, 2) == draw(1, 2)
    assert draw(1, 2) != draw(1, 3)
    assert draw(1, 2) != draw(2, 2)
    assert draw(1, 2) != draw(2, 1)

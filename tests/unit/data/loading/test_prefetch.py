import threading
import time
from collections.abc import Callable, Iterator
from itertools import count, islice

import pytest

from bigft.data.loading.prefetch import prefetch, run_ahead

Ahead = Callable[[Callable[[int], int], Iterator[int]], Iterator[int]]

WAYS: dict[str, Ahead] = {
    "prefetch-0": lambda make, keys: prefetch(make, keys, 0),
    "prefetch-1": lambda make, keys: prefetch(make, keys, 1),
    "prefetch-4": lambda make, keys: prefetch(make, keys, 4),
    "run_ahead": lambda make, keys: run_ahead(map(make, keys), 3),
}


@pytest.fixture(params=WAYS)
def ahead(request: pytest.FixtureRequest) -> Ahead:
    return WAYS[request.param]


def count_threads() -> int:
    return sum(thread.name.startswith("bigft-data") for thread in threading.enumerate())


def test_results_come_in_order_however_long_each_takes(ahead: Ahead) -> None:
    def make(key: int) -> int:
        time.sleep(0.003 * (key % 3 == 0))
        return -key

    assert list(ahead(make, iter(range(30)))) == [-key for key in range(30)]
    assert list(ahead(make, iter(()))) == []
    assert count_threads() == 0


def test_an_error_comes_where_its_result_would_have(ahead: Ahead) -> None:
    def make(key: int) -> int:
        if key == 5:
            raise ValueError("no five")
        return key

    found = ahead(make, count())
    assert list(islice(found, 5)) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="no five"):
        next(found)
    assert count_threads() == 0


def test_stopping_early_ends_the_threads(ahead: Ahead) -> None:
    made = []

    def make(key: int) -> int:
        made.append(key)
        time.sleep(0.001)
        return key

    found = ahead(make, count())
    assert next(found) == 0
    found.close()  # type: ignore[attr-defined]
    assert count_threads() == 0
    so_far = len(made)
    assert so_far < 20
    time.sleep(0.01)
    assert len(made) == so_far


@pytest.mark.parametrize("way", ["prefetch-1", "prefetch-4", "run_ahead"])
def test_the_next_results_are_made_while_one_is_used(way: str) -> None:
    others = {number: threading.Event() for number in range(100)}

    def make(key: int) -> int:
        others[key].set()
        return key

    found = WAYS[way](make, iter(range(100)))
    assert next(found) == 0
    assert others[1].wait(10)
    assert others[2].wait(10)
    time.sleep(0.02)
    assert not others[20].is_set(), "as many as fit were made, not as many as wanted"
    found.close()  # type: ignore[attr-defined]


def test_several_threads_work_at_once() -> None:
    both = threading.Barrier(2, timeout=10)

    def make(key: int) -> int:
        both.wait()
        return key

    assert list(prefetch(make, range(4), 2)) == [0, 1, 2, 3]

"""Work that is done while something else runs, in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar, cast

_Key = TypeVar("_Key")
_Made = TypeVar("_Made")


def prefetch(
    make: Callable[[_Key], _Made], keys: Iterable[_Key], num_workers: int
) -> Iterator[_Made]:
    """Give `make(key)` for every key, in their order, with some of them made ahead.

    Threads, not processes: what they do is copying mapped memory, and a batch need not be sent
    anywhere. An error in `make` is raised where its result would have come.

    Args:
        make: Called in any thread; must not depend on other calls.
        keys: May be endless.
        num_workers: Threads; each stays two results ahead. 0 makes each result when it is asked.
    """
    if num_workers == 0:
        yield from map(make, keys)
        return
    keys = iter(keys)
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="bigft-data")
    ahead: deque[Future[_Made]] = deque()
    try:
        ahead.extend(pool.submit(make, key) for key in islice(keys, 2 * num_workers))
        while ahead:
            made = ahead.popleft().result()
            ahead.extend(pool.submit(make, key) for key in islice(keys, 1))
            yield made
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def run_ahead(made: Iterator[_Made], count: int) -> Iterator[_Made]:
    """Give what an iterator gives, with `count` of it made ahead in one thread."""
    end = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="bigft-data")
    ahead: deque[Future[_Made | object]] = deque()
    try:
        ahead.extend(pool.submit(next, made, end) for _ in range(count))
        while (found := ahead.popleft().result()) is not end:
            ahead.append(pool.submit(next, made, end))
            yield cast(_Made, found)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

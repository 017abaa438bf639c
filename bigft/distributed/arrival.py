"""Who has come to the meeting point of a run, and who has not."""

import contextlib
import socket
from datetime import timedelta
from typing import Any

from bigft.distributed.lookout.standing import name_ranks
from bigft.errors import LaunchError
from bigft.units import format_seconds


def await_all(store: Any, rank: int, size: int, seconds: float) -> None:
    """Wait until every rank is here.

    Args:
        store: The key-value store through which the ranks meet.
        rank: Of this process.
        size: Ranks of the run.
        seconds: The longest that is waited.

    Raises:
        LaunchError: Names the ranks that did not come in time.
        RuntimeError: The store has gone, because rank 0 has.

    Collective: every rank.
    """
    store.set(f"bigft/here/{rank}", socket.gethostname())
    if store.add("bigft/arrived", 1) >= size:
        store.set("bigft/all", "here")
    try:
        store.wait(["bigft/all"], timedelta(seconds=seconds))
    except RuntimeError as error:
        # The same type for a store that has gone: then asking it fails, too.
        missing = _find_missing(store, size)
        if not missing:
            raise
        raise LaunchError(
            f"{name_ranks(missing)} of {size} did not come within {format_seconds(seconds)}"
            " (--watch.startup_seconds). Look at what their hosts say: they were not started, or"
            " cannot reach this address"
        ) from error


def _find_missing(store: Any, size: int) -> list[int]:
    with contextlib.suppress(RuntimeError):
        return [rank for rank in range(size) if not store.check([f"bigft/here/{rank}"])]
    return []

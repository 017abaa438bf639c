"""Ranks that do not come are named."""

import threading
from datetime import timedelta

import pytest
import torch

from bigft.distributed.arrival import await_all
from bigft.errors import LaunchError


def _open(port: int, *, is_first: bool = False) -> torch.distributed.TCPStore:
    return torch.distributed.TCPStore(
        "127.0.0.1", port, None, is_first, timedelta(seconds=20), wait_for_workers=False
    )


def test_all_go_on_when_the_last_one_has_come():
    first = _open(0, is_first=True)
    stores = [first, _open(first.port), _open(first.port)]
    threads = [
        threading.Thread(target=await_all, args=(stores[rank], rank, 3, 20.0)) for rank in (1, 2)
    ]
    for thread in threads:
        thread.start()
    await_all(first, 0, 3, 20.0)
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def test_who_did_not_come_is_named():
    first = _open(0, is_first=True)
    for rank in (1, 2, 5):
        first.set(f"bigft/here/{rank}", "x")
    with pytest.raises(LaunchError, match=r"ranks 3-4, 6 of 7 did not come within 0\.3s"):
        await_all(first, 0, 7, 0.3)


def test_a_store_that_has_gone_is_another_error():
    class Gone:
        def set(self, key: str, value: str) -> None: ...
        def add(self, key: str, value: int) -> int:
            return 1

        def wait(self, keys: list[str], limit: timedelta) -> None:
            raise RuntimeError("Connection reset by peer")

        def check(self, keys: list[str]) -> bool:
            raise RuntimeError("Connection reset by peer")

    with pytest.raises(RuntimeError, match="reset by peer"):
        await_all(Gone(), 0, 2, 0.1)

"""Short messages between ranks that need no collective: usable from a background thread.

A collective from a second thread would get in between those of the training; keys in the store
through which the ranks met do not.
"""

import contextlib
import threading
import time
from collections import deque
from typing import Any

from bigft.errors import LaunchError

# A rank posts one to three messages per save. Older ones have been read, or nobody waits for them.
_KEPT_MESSAGES = 32

_FIRST_PAUSE_SECONDS = 0.002
_LONGEST_PAUSE_SECONDS = 0.25


class StoreBoard:
    """Messages in the key-value store of the process group."""

    def __init__(self, prefix: str, store: Any) -> None:
        """Take a `torch.distributed.Store` and what goes before every key."""
        self._prefix = prefix
        self._store = store
        self._posted: deque[str] = deque()

    def post(self, key: str, text: str) -> None:
        """Leave a message for all ranks.

        Raises:
            LaunchError: The store is gone, because rank 0's process is.
        """
        full = f"{self._prefix}/{key}"
        try:
            self._store.set(full, text)
        except RuntimeError as error:
            raise _lost(error) from error
        self._posted.append(full)
        while len(self._posted) > _KEPT_MESSAGES:
            # Some stores cannot delete.
            with contextlib.suppress(RuntimeError):
                self._store.delete_key(self._posted[0])
            self._posted.popleft()

    def read(self, key: str, timeout_seconds: float) -> str | None:
        """Wait for a message and return it, or None at the time limit.

        Raises:
            LaunchError: The store is gone, because rank 0's process is.
        """
        full = f"{self._prefix}/{key}"
        deadline = time.monotonic() + timeout_seconds
        pause = _FIRST_PAUSE_SECONDS
        try:
            # Not `wait`: it would keep other threads from the store for as long as it waits.
            while not self._store.check([full]):
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                time.sleep(min(pause, left))
                pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)
            return bytes(self._store.get(full)).decode()
        except RuntimeError as error:
            raise _lost(error) from error


class LocalBoard:
    """Messages between the threads of one process."""

    def __init__(self) -> None:
        """Begin without messages."""
        self._texts: dict[str, str] = {}
        self._changed = threading.Condition()

    def post(self, key: str, text: str) -> None:
        """Leave a message."""
        with self._changed:
            self._texts[key] = text
            self._changed.notify_all()

    def read(self, key: str, timeout_seconds: float) -> str | None:
        """Wait for a message and return it, or None at the time limit."""
        with self._changed:
            self._changed.wait_for(lambda: key in self._texts, timeout_seconds)
            return self._texts.get(key)


def open_board(prefix: str) -> StoreBoard | LocalBoard:
    """Return a board of all ranks, or one of this process alone if there is no process group.

    Args:
        prefix: Keeps apart what several boards post; the same on every rank.

    Raises:
        LaunchError: There is a process group of several ranks without a store.
    """
    import torch

    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return LocalBoard()
    try:
        # The store that `init_process_group` made has no public name in torch 2.13.
        store = torch.distributed.distributed_c10d._get_default_store()
    except (AttributeError, ValueError) as error:
        if torch.distributed.get_world_size() == 1:
            return LocalBoard()
        raise LaunchError(
            f"the process group has no store ({error}); start the ranks with the deepspeed launcher"
        ) from error
    return StoreBoard(prefix, store)


def _lost(error: RuntimeError) -> LaunchError:
    return LaunchError(
        f"the ranks can no longer exchange messages ({str(error).splitlines()[0]});"
        " rank 0 or the network has failed, see its log"
    )

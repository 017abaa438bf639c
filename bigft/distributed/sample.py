"""What a rank notes once a second, by a thread: memory, and whether something goes on."""

import contextlib
import time

from bigft.distributed.frames import find_main_frame
from bigft.distributed.memory import read_host_memory
from bigft.distributed.place import HERE
from bigft.distributed.processes import read_free_bytes, read_moved_bytes, read_rss_bytes

SAMPLE_SECONDS = 1.0

_MOVED_BYTES = 1 << 20
"""So much read or written in a second is work that goes on, inside a phase that takes long. What
rank 0 hears from 128 hosts is an eighth of that."""


class Sampler:
    """Notes of one process about itself."""

    def __init__(self, still_seconds: float = 10.0) -> None:
        """Take after how long without a move the notes say in which function the process is."""
        self._still_seconds = still_seconds
        self._alive = 0
        self._moved_bytes = read_moved_bytes()
        self._mark: tuple[object, ...] = ()
        self._since = time.monotonic()
        self.taken = 0.0
        self.take()

    def take(self) -> None:
        """Keep what is asked when this process has ended, or stands still."""
        now = self.taken = time.monotonic()
        self._alive += 1
        self._look_for_moves()
        facts = HERE.facts
        mark = (facts.get("since"), facts.get("step"), facts.get("moves"))
        if mark != self._mark:
            self._mark, self._since = mark, now
        where: tuple[str | None, bool | None] = (None, None)
        if now - self._since >= self._still_seconds:
            where = find_main_frame()
        HERE.note(alive=self._alive, where=where[0], waits=where[1])
        # Where no descriptor is left to ask with, the thread that asks has to live on.
        with contextlib.suppress(OSError):
            memory = read_host_memory()
            HERE.note(
                used_bytes=memory.used_bytes,
                limit_bytes=memory.limit_bytes,
                is_grouped=memory.is_grouped,
                rss_bytes=read_rss_bytes(),
                shared_free_bytes=read_free_bytes("/dev/shm"),
            )

    def _look_for_moves(self) -> None:
        moved = read_moved_bytes()
        if moved - self._moved_bytes >= _MOVED_BYTES:
            HERE.beat()
        self._moved_bytes = moved

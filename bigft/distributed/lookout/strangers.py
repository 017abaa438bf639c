"""Who calls and has not yet shown the token of the run: some seconds, few words, and not many."""

import contextlib
import logging
import selectors
import socket
import time
from dataclasses import dataclass, field

from bigft.distributed.lookout.lines import (
    MAX_HELLO_BYTES,
    MAX_LINE_BYTES,
    Line,
    LineClosedError,
    Message,
    is_same_token,
)

logger = logging.getLogger(__name__)

_HELLO_SECONDS = 5.0
_MOST = 64
"""Beside one for every host."""


@dataclass
class _Stranger:
    line: Line
    since: float = field(default_factory=time.monotonic)


class Strangers:
    """Connections between `accept` and the first words. They are in the selector without data."""

    def __init__(self, selector: selectors.BaseSelector, token: str, hosts: int) -> None:
        """Take who wakes for them, what they have to show, and how many may call."""
        self._selector, self._token = selector, token
        self._most = _MOST + hosts
        self._waiting: dict[int, _Stranger] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._waiting)

    def accept(self, listener: socket.socket) -> None:
        """Let one in; where there are too many, the one that is here longest has to go."""
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            if len(self._waiting) >= self._most:
                self._turn_away(min(self._waiting, key=lambda fd: self._waiting[fd].since))
            line = Line(connection, MAX_HELLO_BYTES)
            self._waiting[line.fileno()] = _Stranger(line)
            self._selector.register(line, selectors.EVENT_READ)

    def hear(self, fd: int) -> tuple[Line, list[Message]] | None:
        """Hear the first words of somebody; who has the token is no stranger any more.

        Returns:
            Its connection, which is still in the selector, and one message or more.
        """
        stranger = self._waiting.get(fd)
        if stranger is None:
            return None
        try:
            messages = stranger.line.receive()
        except LineClosedError:
            self._turn_away(fd)
            return None
        if not messages:
            return None
        if not is_same_token(messages[0].get("token"), self._token):
            logger.warning("a connection without the token of this run was closed")
            self._turn_away(fd)
            return None
        del self._waiting[fd]
        stranger.line.max_bytes = MAX_LINE_BYTES
        return stranger.line, messages

    def turn_slow_away(self, now: float) -> None:
        """Close the connections of those who have had their time."""
        for fd in [f for f, one in self._waiting.items() if now - one.since > _HELLO_SECONDS]:
            self._turn_away(fd)

    def close(self) -> None:
        """Turn everybody away."""
        for fd in list(self._waiting):
            self._turn_away(fd)

    def _turn_away(self, fd: int) -> None:
        stranger = self._waiting.pop(fd)
        self._selector.unregister(stranger.line)
        stranger.line.close()

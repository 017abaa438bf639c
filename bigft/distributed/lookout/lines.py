"""Connections between hosts: JSON lines of bounded length, and no call that waits.

One host listens, and everybody who cannot show the token of the run within seconds is dropped.
"""

import contextlib
import hmac
import json
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

MAX_LINE_BYTES = 256 << 10
"""A host with 1,000 ranks needs 200 KB."""

MAX_HELLO_BYTES = 16 << 10
MAX_UNSENT_BYTES = 1 << 20
_CONNECT_SECONDS = 3.0

# struct tcp_info of Linux: eight bytes, then words; this one is tcpi_last_ack_recv, in ms.
_LAST_ACK = struct.Struct("56xI")

Message = dict[str, Any]


class LineClosedError(Exception):
    """The other side has gone, or what it says makes no sense."""


class Line:
    """One connection. Not for several threads at once."""

    def __init__(self, connection: socket.socket, max_bytes: int = MAX_LINE_BYTES) -> None:
        """Take over an open connection."""
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = connection
        self.max_bytes = max_bytes
        self.heard = time.monotonic()
        """When the last whole line came."""
        self._read = bytearray()
        self._unsent = bytearray()

    def fileno(self) -> int:
        """Descriptor, for a selector."""
        return self.connection.fileno()

    def send(self, message: Message) -> None:
        """Send a line, or what of it goes through now; the rest goes with the next one.

        Raises:
            LineClosedError: The connection is gone, or nobody reads at its other end.
        """
        self._unsent += json.dumps(message).encode() + b"\n"
        try:
            while self._unsent:
                del self._unsent[: self.connection.send(self._unsent)]
        except BlockingIOError:
            if len(self._unsent) > MAX_UNSENT_BYTES:
                raise LineClosedError("nobody reads") from None
        except OSError as error:
            raise LineClosedError(error.strerror or str(error)) from error

    def receive(self) -> list[Message]:
        """Return the lines that have come.

        Raises:
            LineClosedError: No line came, and none will: the other side has closed.
        """
        found: list[Message] = []
        try:
            # Not for ever: who sends without pause must not keep us from the others.
            for _ in range(8):
                data = self.connection.recv(64 << 10)
                if not data:
                    raise LineClosedError("closed")
                self._read += data
                found += self._split()
        except BlockingIOError:
            pass
        except OSError as error:
            if not found:
                raise LineClosedError(error.strerror or str(error)) from error
        except LineClosedError:
            # What was said before the end counts; the next call says that it has ended.
            if not found:
                raise
        if found:
            self.heard = time.monotonic()
        return found

    def _split(self) -> list[Message]:
        *lines, rest = self._read.split(b"\n")
        if max(map(len, [*lines, rest])) > self.max_bytes:
            raise LineClosedError("a line that is too long")
        self._read = rest
        try:
            found = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            raise LineClosedError("no JSON") from None
        if not all(isinstance(message, dict) for message in found):
            raise LineClosedError("no message")
        return found

    def answered_seconds_ago(self) -> float | None:
        """When the other system last acknowledged anything; None where the system does not say.

        It does so also for a process that is stopped: this tells it from a host that is gone.
        """
        try:
            data = self.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_ACK.size)
            return float(_LAST_ACK.unpack(data)[0]) / 1000
        except (OSError, AttributeError, struct.error):
            return None

    def close(self) -> None:
        """Close it; what was sent still arrives."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            self.connection.close()


def listen(address: str, port: int) -> socket.socket:
    """Open a listening socket at one address of this host.

    Raises:
        OSError: It is none of its addresses, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(1024)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def call(addresses: Sequence[str], port: int, hello: Message) -> Line:
    """Connect to the first address that answers, and say who is there.

    Raises:
        OSError: Nobody answers.
    """
    problem = OSError("no address")
    for address in addresses:
        try:
            line = Line(socket.create_connection((address, port), timeout=_CONNECT_SECONDS))
            line.send(hello)
        except OSError as error:
            problem = error
        except LineClosedError as error:
            problem = OSError(str(error))
        else:
            return line
    raise problem


def is_same_token(given: object, token: str) -> bool:
    """Compare in a time that says nothing about the token."""
    return isinstance(given, str) and hmac.compare_digest(given.encode(), token.encode())

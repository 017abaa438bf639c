"""What a host says, on its way to whoever has started the run."""

import contextlib
import re
import threading
import time
from collections.abc import Iterable
from typing import TextIO

from bigft.launch.report import Report, begin_word
from bigft.redact import redact_text
from bigft.units import escape_controls

_LINE_BYTES = 64 << 10
_MARGIN = 4 << 10
"""Left out at the cut: half a secret is not recognised."""

_CHATTER = re.compile(r"(\[rank\d+\]:)?\[[IW]\d{3,4} ")
"""torch's notes and warnings: they do not say why somebody has gone."""


class HostOutput:
    """Passes on what a host says: line by line, without secrets, without what a terminal obeys.

    The words of its agent are kept back, wherever between those of the ranks they come. Only the
    agent has the token of the job: a rank may print what it likes.
    """

    def __init__(self, stream: TextIO, prefix: str, lock: threading.Lock, token: str) -> None:
        """Take where it goes, what stands before every line, and the token of the host's job."""
        self._stream, self._prefix, self._lock = stream, prefix, lock
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._token = token
        self._start = begin_word(token).encode()
        self._held = b""
        """What may be the beginning of a word of the agent."""
        self._rest = b""
        self._is_skipping = False
        self.heard = time.monotonic()
        """When the agent has said something, or since when it may."""
        self._held_up_since: float | None = None
        """Since when whoever has started the run does not read on."""
        self.report: Report | None = None
        self.last_words = ""
        """The last line with something in it, as it is shown, but no warning of torch's."""

    def write(self, data: bytes) -> None:
        """Take a piece."""
        *lines, rest = self._hear(data).split(b"\n")
        shown: list[str] = []
        for line in lines:
            if not self._is_skipping:
                shown.append(self._show(self._rest + line))
            self._rest, self._is_skipping = b"", False
        if not self._is_skipping:
            self._rest += rest
        if len(self._rest) > _LINE_BYTES:
            # Nobody reads on; and the memory of this process is not the host's to fill.
            shown.append(self._show(self._rest))
            self._rest, self._is_skipping = b"", True
        self._pass_on(shown)

    def finish(self) -> None:
        """Pass on a last line without an end."""
        rest = self._rest + self._held
        if rest and not self._is_skipping:
            self._pass_on([self._show(rest)])
        self._rest = self._held = b""

    @property
    def is_held_up(self) -> bool:
        """Whether it waits for whoever has started the run, as behind a paused terminal."""
        return self._held_up_since is not None

    def silent_seconds(self, now: float) -> float:
        """Return how long the agent has said nothing, while somebody listened."""
        return (self._held_up_since or now) - self.heard

    def _hear(self, data: bytes) -> bytes:
        """Take the words of the agent out of a piece; returns what the ranks have said."""
        data, self._held = self._held + data, b""
        said = b""
        while (start := data.find(self._start)) >= 0:
            end = data.find(b"\n", start)
            if end < 0:
                said, data, self._held = said + data[:start], b"", data[start:]
                break
            self._obey(data[start:end].decode("utf-8", "replace"))
            said, data = said + data[:start], data[end + 1 :]
        for length in range(min(len(self._start) - 1, len(data)), 0, -1):
            if self._start.startswith(data[-length:]):
                data, self._held = data[:-length], data[-length:]
                break
        if len(self._held) > _LINE_BYTES:
            data, self._held = data + self._held, b""
        return said + data

    def _obey(self, word: str) -> None:
        self.heard = time.monotonic()
        with contextlib.suppress(ValueError):
            self.report = Report.from_line(word, self._token)

    def _show(self, line: bytes) -> str:
        text = line[:_LINE_BYTES].decode("utf-8", "replace").rstrip("\r")
        shown = escape_controls(redact_text(text))
        if len(line) > _LINE_BYTES:
            shown = f"{shown[:-_MARGIN]} [the rest of this line is left out]"
        if not _CHATTER.match(shown):
            self.last_words = shown.strip()[-300:] or self.last_words
        return shown

    def _pass_on(self, texts: Iterable[str]) -> None:
        self._held_up_since = start = time.monotonic()
        self._write(texts)
        # What the agent has said meanwhile is still to come.
        self.heard += time.monotonic() - start
        self._held_up_since = None

    def _write(self, texts: Iterable[str]) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            for text in texts:
                line = f"{self._prefix}{text}\n"
                # A terminal that knows fewer characters is no reason to lose the line.
                self._stream.write(
                    line.encode(self._encoding, "backslashreplace").decode(self._encoding)
                )
            self._stream.flush()

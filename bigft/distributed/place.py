"""Where this process stands, in memory that others can read after it has gone.

Every part of a run notes what it is about to do. Nobody looks at the notes while all is well; a
witness or another rank of the host reads them when this process has ended, or stands still.
"""

import contextlib
import json
import mmap
import os
import struct
import threading
import time
from typing import Any

_SLOT = 4096
_LENGTH = struct.Struct("<H")

Facts = dict[str, Any]
"""What is known of a process: `phase`, `step`, `first_step`, `total_steps`, `since`, numbers of
memory, plans."""


class Place:
    """The notes of one process.

    Two slots in shared memory are written in turn, and a byte in front says which one counts, so
    that an end in the middle of a note leaves the note before it.
    """

    def __init__(self) -> None:
        """Begin with nothing noted and nothing shared."""
        self.facts: Facts = {"phase": "starting"}
        self.fd: int | None = None
        """Of the shared memory, for other processes; None until `share`."""
        self._memory: mmap.mmap | None = None
        self._lock = threading.Lock()

    def share(self) -> int | None:
        """Begin to keep the notes where others can read them; None where the system refuses."""
        if self.fd is None:
            # Some builds of Python have no memfd_create.
            with contextlib.suppress(OSError, AttributeError):
                self.fd = os.memfd_create("bigft-place")
                os.truncate(self.fd, 2 * _SLOT + 1)
                self._memory = mmap.mmap(self.fd, 2 * _SLOT + 1)
        self.note()
        return self.fd

    def note(self, **facts: Any) -> None:
        """Keep facts; None forgets one. Costs a few microseconds and no system call."""
        with self._lock:
            if "phase" in facts:
                facts["since"] = time.time()
            self.facts = {k: v for k, v in {**self.facts, **facts}.items() if v is not None}
            if self._memory is None:
                return
            text = json.dumps(self.facts).encode()
            if len(text) > _SLOT - _LENGTH.size:
                return
            slot = 1 - self._memory[0]
            start = 1 + slot * _SLOT
            end = start + _LENGTH.size + len(text)
            self._memory[start:end] = _LENGTH.pack(len(text)) + text
            self._memory[0] = slot

    def beat(self) -> None:
        """Note that something goes on, inside a phase that may take long."""
        self.note(moves=self.facts.get("moves", 0) + 1)


HERE = Place()
"""Of this process: it is in one place at a time, whoever asks."""


def read_place(fd: int) -> Facts:
    """Read the notes of another process; nothing where there are none."""
    try:
        data = os.pread(fd, 2 * _SLOT + 1, 0)
        start = 1 + data[0] * _SLOT
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        facts = json.loads(data[start : start + length])
    except (OSError, ValueError, IndexError, struct.error):
        return {}
    return facts if isinstance(facts, dict) else {}


def describe_place(facts: Facts) -> str:
    """Say where a process stands: `in step 13 of 500 (backward)`, `while loading the model`."""
    phase = facts.get("phase", "running")
    if "step" not in facts:
        return f"while {phase}"
    return f"in step {facts['step']} of {facts.get('total_steps', '?')} ({phase})"

"""What is said of processes that ended without a word, on the terminal and in the run folder."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from bigft.distributed.exits import End, explain_exit, parse_status, read_exit
from bigft.distributed.memory import HostMemory, read_host_memory
from bigft.distributed.place import Facts, read_place
from bigft.distributed.signals import STOP_SIGNALS
from bigft.errors import StoppedError
from bigft.redact import redact_text

_ORDERED = {-number for number in (*STOP_SIGNALS, 1)}
"""A launcher or a terminal (SIGHUP) ends whoever is left."""

GO_ON = "The same command goes on from the newest committed checkpoint"


def show(text: str, stream: TextIO | None = None) -> None:
    """Write a line for people; what cannot be written is left out."""
    with contextlib.suppress(Exception):
        stream = stream or sys.stderr
        stream.write(redact_text(f"{text}\n"))
        stream.flush()


def say(text: str, folder: str | None, stream: TextIO | None = None) -> None:
    """Write the last words of a run; what cannot be written is left out."""
    line = redact_text(f"bigft: {text}\n")
    show(f"bigft: {text}", stream)
    if folder is not None:
        with contextlib.suppress(OSError):
            (Path(folder) / "log" / "last_words.txt").write_text(line)


def speak_for(ends: Sequence[tuple[int, int, int, str]], place: int) -> None:
    """Explain the first death among processes that have all ended, unless somebody has done so.

    Args:
        ends: Rank, process, its descriptor, and its last `/proc/PID/stat`, in the order of ends.
        place: Descriptor of what the witnessed rank has noted.
    """
    facts = read_place(place)
    codes = [
        parse_status(status) if status else read_exit(pid, pidfd) for _, pid, pidfd, status in ends
    ]
    memory = read_host_memory()
    # Nobody can say any more how a process ended, but the kernel has killed for lack of memory.
    codes = [-9 if c is None and memory.kills > facts.get("started_kills", 0) else c for c in codes]
    if any(code is not None and code > 0 and code != StoppedError.exit_code for code in codes):
        # A rank that leaves with an error has said why, its own end or another's.
        return
    for (rank, pid, _, _), code in zip(ends, codes, strict=True):
        if code is not None and code < 0 and code not in _ORDERED:
            text = describe_end(rank, pid, code, facts)
            say(f"{text}. {GO_ON}", facts.get("folder"))
            return


def describe_end(rank: int, pid: int, code: int, facts: Facts) -> str:
    """Say how a rank ended, with what it or a rank beside it has noted."""
    who = "the run" if facts.get("world_size") == 1 else f"rank {rank}"
    now = read_host_memory()
    last = HostMemory(
        facts.get("started_kills", now.kills),
        facts.get("used_bytes", now.used_bytes),
        facts.get("limit_bytes", now.limit_bytes),
        facts.get("is_grouped", now.is_grouped),
    )
    return f"{who} (pid {pid}) {explain_exit(code, End(last, now, facts, rank))}"

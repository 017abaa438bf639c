"""Starts the witness of a host: what speaks when no rank is left to do it."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bigft.distributed.memory import read_host_memory
from bigft.distributed.place import HERE
from bigft.distributed.starters import RANK_NAMES

_PROGRAM = Path(__file__).with_name("witness_process.py")
_ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def witnessed() -> Iterator[None]:
    """Have the end of this process witnessed, and of the ranks beside it; once per host.

    Notes that the run leaves in `HERE` are what the witness knows of it. Where the system refuses
    a process more, the run goes on without.
    """
    memory = read_host_memory()
    HERE.note(
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        started_kills=memory.kills,
    )
    place = HERE.share()
    pipe = _start(place) if place is not None and _is_first_here() else None
    try:
        yield
    finally:
        if pipe is not None:
            # A reader that has gone is no reason for an error, or for a signal.
            with contextlib.suppress(OSError):
                os.write(pipe, b"\0")
            os.close(pipe)


def _is_first_here() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _start(place: int) -> int | None:
    """Start it, and return where to write when it is not needed any more."""
    reader, writer = os.pipe()
    try:
        pidfd = os.pidfd_open(os.getpid())
    except (OSError, AttributeError):
        os.close(reader)
        os.close(writer)
        return None
    numbers = [os.environ.get("RANK", "0"), pidfd, place, reader, os.getppid()]
    words = [sys.executable, "-I", "-S", str(_PROGRAM), str(_ROOT), *map(str, numbers)]
    words += RANK_NAMES
    try:
        # Through a shell that leaves at once: a launcher ends all descendants of a rank, and
        # waits for them; an orphan in a session of its own is none.
        subprocess.run(
            ["/bin/sh", "-c", '"$@" &', "sh", *words],
            stdin=subprocess.DEVNULL,
            # Who reads the result of the run must not wait for the witness.
            stdout=subprocess.DEVNULL,
            pass_fds=(pidfd, place, reader),
            start_new_session=True,
        )
    except OSError:
        os.close(writer)
        return None
    finally:
        os.close(reader)
        os.close(pidfd)
    return writer

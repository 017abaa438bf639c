"""Processes of this host: those below this one, and those of an earlier start."""

import contextlib
import ctypes
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of whatever is below this process and loses its own; Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def allow_open_files(count: int) -> int:
    """Let this process have so many files open, as far as the system grants it.

    Returns:
        How many it may have open now.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return count
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Let this process get a signal when its parent ends; between fork and exec. Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def find_children(pid: int) -> list[int]:
    """Return the children of a process that have not ended."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return [child for child in found if not _is_dead(child)]


def find_below(pid: int) -> list[int]:
    """Return all living descendants of a process, parents first."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = find_children(waiting.pop(0))
        found += children
        waiting += children
    return found


def find_marked(name: str, value: str) -> list[int]:
    """Return the processes of this user with an environment variable, this one left out."""
    wanted = f"{name}={value}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "environ").read_bytes().split(b"\0")
            pid = int(folder.name)
            if wanted in words and pid != os.getpid() and not _is_dead(pid):
                found.append(pid)
    return found


def read_variable(pid: int, name: str) -> str | None:
    """Return an environment variable that a process was started with."""
    start = f"{name}=".encode()
    with contextlib.suppress(OSError):
        for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if word.startswith(start):
                return word.removeprefix(start).decode("utf-8", "replace")
    return None


def send(pids: Sequence[int], number: int) -> None:
    """Send a signal to processes, as far as they are still there."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def end_all(find: Callable[[], list[int]], seconds: float) -> bool:
    """End processes for good, and those that come up meanwhile.

    Args:
        find: Lists those that are left.
        seconds: Time limit.

    Returns:
        Whether none is left.
    """
    deadline = time.monotonic() + seconds
    while left := find():
        if time.monotonic() > deadline:
            return False
        send(left, signal.SIGKILL)
        reap()
        time.sleep(0.05)
    return True


def reap() -> None:
    """Collect the ends of adopted children, so that none stays as a zombie."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _is_dead(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"

"""The processes of this host that a rank looks after: other ranks, and what started them."""

import os
import select
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bigft.distributed.exits import read_exit
from bigft.errors import LaunchError

_STARTERS = ("deepspeed.launcher.launch", "bigft.launch.agent")
"""What the command line of a rank's parent has in it, where that is a launcher."""

_SPEAKER_SECONDS = 3.0

_ABOVE = ("deepspeed", *_STARTERS)


@dataclass(frozen=True)
class Process:
    """A rank of this host, or what started the ranks."""

    pid: int
    pidfd: int
    rank: int | None
    """None: a launcher."""


def identify_host() -> str:
    """Name this kernel and this view of process numbers; containers of one host differ."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115


def name_host() -> str:
    """Name this host as the hostfile does, or as it names itself."""
    return os.environ.get("BIGFT_HOST") or socket.gethostname()


def find_launchers() -> list[int]:
    """Find what started this rank: DeepSpeed's launcher, `deepspeed` or bigft's agent above it.

    When one of them is killed the ranks would run on, with nobody to report to.
    """
    found: list[int] = []
    pid = os.getppid()
    while pid > 1:
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, UnicodeDecodeError):
            break
        if not any(word in line for word in (_ABOVE if found else _STARTERS)):
            break
        found.append(pid)
        pid = parent
    return found


def has_ended(process: Process, seconds: float) -> bool:
    """Wait for the end of a process; return whether it came."""
    poller = select.poll()
    poller.register(process.pidfd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def find_speaker(processes: Iterable[Process], rank: int) -> Process | None:
    """Find the rank below this one that speaks; None when it is this one."""
    below = [p for p in processes if p.rank is not None and p.rank < rank]
    # One may have spoken, and left, before this process has had its turn.
    able = [
        p
        for p in below
        if not has_ended(p, 0) or read_exit(p.pid, p.pidfd) == LaunchError.exit_code
    ]
    return min(able, key=lambda p: p.rank or 0, default=None)


def has_spoken(speaker: Process) -> bool:
    """Whether the speaker lives, or has left in order."""
    if not has_ended(speaker, _SPEAKER_SECONDS):
        return True
    code = read_exit(speaker.pid, speaker.pidfd)
    return code is None or code >= 0


def read_rss_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def read_moved_bytes() -> int:
    """Return what this process has read and written so far; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    counts = dict(line.split(": ") for line in lines)
    # The first two count calls, also of sockets; the others what reached or left a disk.
    names = ("rchar", "wchar", "read_bytes", "write_bytes")
    return sum(int(counts.get(name, 0)) for name in names)


def read_free_bytes(folder: str) -> int | None:
    """Return the room in a folder; None where there is none to ask."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize

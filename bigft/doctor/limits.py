"""What `ulimit` allows."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from bigft.distributed.memory import find_groups
from bigft.doctor.finding import Finding, failed, passed, skipped
from bigft.doctor.wanted import Wanted
from bigft.units import format_bytes

FILES = 4096
"""Shards, swap files, sockets and the data of one rank, all open at once."""

_THREADS_PER_RANK = 256
_UNKNOWN_PINNED = 1 << 30
_INFINIBAND = Path("/sys/class/infiniband")


def check_limits(wanted: Wanted) -> Iterator[Finding]:
    """Judge locked memory, open files and processes."""
    yield _check_locked(wanted)
    yield _check_files()
    yield _check_processes(wanted)


def _check_locked(wanted: Wanted) -> Finding:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return passed("memlock", "unlimited")
    users = list(_find_locking(wanted))
    found = format_bytes(limit)
    if not users:
        # CUDA's driver locks memory itself, past this limit.
        return skipped("memlock", f"{found}; nothing here locks memory against it")
    needed = wanted.need.pinned_bytes or _UNKNOWN_PINNED
    if limit >= needed:
        return passed("memlock", found)
    return failed(
        "memlock",
        f"{found} per process, {format_bytes(needed)} needed",
        f"{' and '.join(users)} locks memory against this limit",
        "ulimit -l unlimited   (docker run --ulimit memlock=-1; on a host: memlock in"
        " /etc/security/limits.conf)",
        "space",
    )


def _find_locking(wanted: Wanted) -> Iterator[str]:
    if wanted.environ.get("DS_PIN_MEMORY_BACKEND", "").lower() == "native":
        yield "DeepSpeed (DS_PIN_MEMORY_BACKEND=native)"
    if wanted.device == "cuda" and _INFINIBAND.is_dir() and any(_INFINIBAND.iterdir()):
        yield "InfiniBand"


def _check_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FILES:
        return passed("open_files", f"{soft:,} per process" if soft > 0 else "unlimited")
    is_enough = hard == resource.RLIM_INFINITY or hard >= FILES
    return failed(
        "open_files",
        f"{soft:,} per process",
        f"a rank may have {FILES:,} shards, swap files and sockets open",
        f"ulimit -n {FILES}" + ("" if is_enough else "   (nofile in /etc/security/limits.conf)"),
    )


def _check_processes(wanted: Wanted) -> Finding:
    limits = []
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY:
        limits.append(("ulimit -u", soft))
    for folder in find_groups(controller="pids"):
        file = folder / "pids.max"
        text = file.read_text().strip() if file.is_file() else "max"
        if text != "max":
            limits.append((f"the control group {folder.name}", int(text)))
    needed = _THREADS_PER_RANK * wanted.ranks + (os.cpu_count() or 1)
    if not limits:
        return passed("processes", "unlimited")
    where, limit = min(limits, key=lambda entry: entry[1])
    if limit >= needed:
        return passed("processes", f"{limit:,} ({where})")
    return failed(
        "processes",
        f"{limit:,} ({where}), {needed:,} threads needed",
        "libraries that cannot start a thread end the process without a useful word",
        f"ulimit -u {max(needed, 4096)}   (docker run --pids-limit=-1)",
    )

"""What this process may use of the host's memory, and whether the kernel has killed for it.

The kernel counts the processes it kills for lack of memory: per control group (version 2:
`memory.events`, version 1: `memory.oom_control`) and for the whole host (`/proc/vmstat`). A
container may not see the counters above its own.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_VMSTAT = Path("/proc/vmstat")
_MEMINFO = Path("/proc/meminfo")
_OWN_CGROUPS = Path("/proc/self/cgroup")

_UNLIMITED = 1 << 60
"""Version 1 writes "no limit" as a number of pages close to 2^63 bytes."""


@dataclass(frozen=True)
class HostMemory:
    """A reading of the memory that this process shares with others."""

    kills: int
    """Processes that the kernel has ended for lack of memory, in this group or on this host."""
    used_bytes: int
    limit_bytes: int
    is_grouped: bool
    """Whether a control group sets the limit, and not the host's size."""


def read_host_memory(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> HostMemory:
    """Read counters and limits of the group that has the least room, or of the host.

    Args:
        cgroups: Where the control groups are mounted.
        own: The file that says to which groups this process belongs.
    """
    total, available = _read_host()
    kills = _read_counter(_VMSTAT, "oom_kill")
    tightest = HostMemory(kills, total - available, total, is_grouped=False)
    for folder in find_groups(cgroups, own):
        limit = _read_number(folder, "memory.max", "memory.limit_in_bytes")
        used = _read_number(folder, "memory.current", "memory.usage_in_bytes") or 0
        kills = max(kills, _read_kills(folder))
        if limit is not None and limit < tightest.limit_bytes:
            tightest = HostMemory(kills, used, limit, is_grouped=True)
    return HostMemory(kills, tightest.used_bytes, tightest.limit_bytes, tightest.is_grouped)


def read_available_bytes(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> int:
    """Return the memory that this process may still take, of its groups and of the host.

    What a group holds of files can be dropped and does not count as used.
    """
    _, available = _read_host()
    for folder in find_groups(cgroups, own):
        limit = _read_number(folder, "memory.max", "memory.limit_in_bytes")
        used = _read_number(folder, "memory.current", "memory.usage_in_bytes") or 0
        if limit is not None:
            names = ("inactive_file", "active_file")
            files = sum(_read_counter(folder / "memory.stat", name) for name in names)
            available = min(available, limit - max(used - files, 0))
    return max(available, 0)


def _read_host() -> tuple[int, int]:
    """Return all memory and what is still available, in bytes."""
    found = {}
    for line in _MEMINFO.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("MemTotal", "MemAvailable"):
            found[name] = int(rest.split()[0]) * 1024
    return found["MemTotal"], found.get("MemAvailable", 0)


def find_groups(
    cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUPS, controller: str = "memory"
) -> list[Path]:
    """Find the folders of this process's groups of a controller, from its own up to the root."""
    lines = own.read_text().splitlines() if own.is_file() else []
    found: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root = cgroups
        elif controller in controllers.split(","):
            root = cgroups / controller
        else:
            continue
        # In a container the path may be the host's, of which only the own end is mounted, as root.
        start = root / path.lstrip("/")
        places = [start, *start.parents] if start.is_dir() else [root]
        found += [folder for folder in places if folder == root or root in folder.parents]
    return found


def _read_kills(folder: Path) -> int:
    return max(
        _read_counter(folder / "memory.events", "oom_kill"),
        _read_counter(folder / "memory.oom_control", "oom_kill"),
    )


def _read_counter(path: Path, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0


def _read_number(folder: Path, *names: str) -> int | None:
    """Read the first of these files that exists; None where it is missing or says no limit."""
    for name in names:
        with contextlib.suppress(OSError):
            text = (folder / name).read_text().strip()
            return int(text) if text.isdigit() and int(text) < _UNLIMITED else None
    return None

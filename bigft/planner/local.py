"""What this host says of itself: GPUs, cores, instruction sets, limits and free space."""

import contextlib
import math
import os
import resource
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT_SECONDS = 10.0
"""`nvidia-smi` takes a second or two where the driver sleeps, and for ever where it is stuck."""

_FIELDS = "index,uuid,name,memory.free,pcie.link.gen.max,pcie.link.width.max"

_LANE = {1: 0.2e9, 2: 0.4e9, 3: 0.75e9, 4: 1.56e9, 5: 3.44e9, 6: 6.9e9}
"""Bytes per second each way that copies reach over one lane, by generation of PCIe."""


@dataclass(frozen=True)
class Gpu:
    """One GPU that a run may use."""

    name: str
    free_bytes: int
    pcie: float | None
    """Bytes per second each way, by the link's generation and width; None: not said."""


@dataclass(frozen=True)
class Cpu:
    """The processors of this host."""

    name: str
    instructions: str
    """The widest set for matrix products: `amx`, `avx512_bf16`, `avx512`, `avx2`, `neon` or
    `plain`."""


def read_gpus(environ: Mapping[str, str] = os.environ) -> list[Gpu]:
    """Ask `nvidia-smi`; empty without it, without a driver, or where it does not answer in time.

    Args:
        environ: `CUDA_VISIBLE_DEVICES` in it leaves the others out, `DS_ACCELERATOR=cpu` all.
    """
    if environ.get("DS_ACCELERATOR") == "cpu":
        return []
    command = ["nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode:
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    seen = environ.get("CUDA_VISIBLE_DEVICES")
    return [_to_gpu(row) for row in rows if len(row) == 6 and _is_visible(row, seen)]


def _is_visible(row: list[str], seen: str | None) -> bool:
    if seen is None:
        return True
    names = [name.strip() for name in seen.split(",") if name.strip()]
    return row[0] in names or any(len(name) > 4 and row[1].startswith(name) for name in names)


def _to_gpu(row: list[str]) -> Gpu:
    free, generation, width = (int(cell) if cell.isdigit() else 0 for cell in row[3:])
    lane = _LANE.get(generation)
    return Gpu(row[2], free << 20, lane * width if lane and width else None)


def read_cpu(info: Path = Path("/proc/cpuinfo")) -> Cpu:
    """Read name and instruction sets."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
    flags = set(f"{found.get('flags', '')} {found.get('Features', '')}".split())
    sets = {
        "amx": {"amx_bf16"},
        "avx512_bf16": {"avx512_bf16"},
        "avx512": {"avx512f", "avx512bw"},
        "avx2": {"avx2", "fma"},
        "neon": {"asimd"},
    }
    instructions = next((name for name, needs in sets.items() if needs <= flags), "plain")
    return Cpu(found.get("model name") or os.uname().machine, instructions)


def count_cores(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Count the cores that this process may use: its affinity, below its group's quota."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min([allowed, *(math.ceil(quota) for quota in _read_quotas(cgroups))]))


def _read_quotas(cgroups: Path) -> list[float]:
    found = []
    with contextlib.suppress(OSError, ValueError):
        quota, period = (cgroups / "cpu.max").read_text().split()
        found += [int(quota) / int(period)] if quota.isdigit() else []
    with contextlib.suppress(OSError, ValueError):
        quota = (cgroups / "cpu" / "cpu.cfs_quota_us").read_text()
        period = (cgroups / "cpu" / "cpu.cfs_period_us").read_text()
        found += [int(quota) / int(period)] if int(quota) > 0 else []
    return found


def read_pinned_limit() -> int | None:
    """Return how many bytes this process may pin (`ulimit -l`); None: no limit."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def find_existing(folder: Path) -> Path:
    """Find the folder itself, or the nearest one above it that exists already."""
    folder = folder.expanduser().absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def read_free_disk(folder: Path) -> int | None:
    """Return the bytes that this user may still write to where a folder is, or will be."""
    try:
        stat = os.statvfs(find_existing(folder))
    except (OSError, StopIteration):
        return None
    return stat.f_bavail * stat.f_frsize


def read_network_rate(interfaces: Path = Path("/sys/class/net")) -> float | None:
    """Return the bytes per second of the fastest interface that is up and says its speed."""
    speeds = []
    for folder in interfaces.glob("*"):
        with contextlib.suppress(OSError, ValueError):
            if (folder / "operstate").read_text().strip() == "up":
                speeds.append(int((folder / "speed").read_text()))
    fastest = max(speeds, default=0)
    return fastest * 1e6 / 8 if fastest > 0 else None

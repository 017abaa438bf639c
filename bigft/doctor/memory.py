"""Host memory: what is free below every limit, `/dev/shm`, swap, and how fast it is."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bigft.distributed.memory import read_available_bytes, read_host_memory
from bigft.doctor.finding import Finding, failed, passed, skipped
from bigft.doctor.wanted import Wanted
from bigft.units import format_bytes

_LEAST_HOST = 2 << 30
"""Interpreter and libraries of one rank, with the smallest of models, peak at 1.6 GB here."""

_LEAST_SHARED = 512 << 20
_SHARED_PER_RANK = 128 << 20
"""DeepSpeed maps 66 MiB per rank on the CPU accelerator, NCCL about 40 MiB per neighbour."""

_SLOW_MEMORY = 1e9
_SHM = Path("/dev/shm")
_MEMINFO = Path("/proc/meminfo")
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


def check_memory(wanted: Wanted) -> Iterator[Finding]:
    """Judge room: host memory, shared memory, swap, and what the kernel promises."""
    yield _check_host(wanted)
    yield _check_shared(wanted)
    facts = read_meminfo()
    yield _check_swap(facts)
    yield _check_overcommit(wanted, facts)


def read_meminfo() -> dict[str, int]:
    """Return the kernel's account of the host's memory, in bytes."""
    lines = (line.partition(":") for line in _MEMINFO.read_text().splitlines())
    return {name: int(value.split()[0]) * 1024 for name, _, value in lines if "kB" in value}


def _check_host(wanted: Wanted) -> Finding:
    memory = read_host_memory()
    available = read_available_bytes()
    needed = wanted.need.host_bytes or _LEAST_HOST * wanted.ranks
    whose = "a control group" if memory.is_grouped else "this host"
    found = f"{format_bytes(available)} free of {format_bytes(memory.limit_bytes)} ({whose})"
    if available >= needed:
        return passed("host_memory", found)
    larger = "docker run --memory, srun --mem" if memory.is_grouped else "another host"
    return failed(
        "host_memory",
        f"{found}, {format_bytes(needed)} needed",
        "the kernel ends a rank when memory runs out: exit code -9, without a word",
        f"give more ({larger}), end other programs, or --config ds_configs/zero3_nvme.json",
        "space",
    )


def _check_shared(wanted: Wanted) -> Finding:
    needed = wanted.need.shared_memory_bytes or max(_LEAST_SHARED, _SHARED_PER_RANK * wanted.ranks)
    repair = f"mount -o remount,size={max(needed, 1 << 30) >> 20}M /dev/shm"
    repair += "   (docker run --shm-size=16g)"
    why = "ranks of one host exchange numbers in it; when it is full they end with SIGBUS (-7)"
    if not _SHM.is_dir():
        return failed("shared_memory", "there is no /dev/shm", why, repair, "space")
    status = os.statvfs(_SHM)
    free, size = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
    found = f"{format_bytes(free)} free of {format_bytes(size)}"
    if free >= needed:
        return passed("shared_memory", found)
    if size >= needed:
        repair = "ls -l /dev/shm   shows what fills it; remove what no process uses"
    return failed("shared_memory", f"{found}, {format_bytes(needed)} needed", why, repair, "space")


def _check_swap(facts: dict[str, int]) -> Finding:
    total = facts.get("SwapTotal", 0)
    used = total - facts.get("SwapFree", 0)
    if not total:
        return passed("swap", "none")
    found = f"{format_bytes(used)} of {format_bytes(total)} in use"
    # Programs that sleep are put there on healthy hosts, a GiB or two.
    if used > facts["MemTotal"] // 8:
        return failed(
            "swap",
            found,
            "more than an eighth of the memory has been moved to a disk: what a run touches every"
            " step would be read from there",
            "end what fills the memory (ps aux --sort=-rss | head), then swapoff -a && swapon -a",
            "space",
        )
    return passed("swap", found)


def _check_overcommit(wanted: Wanted, facts: dict[str, int]) -> Finding:
    mode = int(_OVERCOMMIT.read_text())
    if mode != 2:
        return passed("overcommit", f"mode {mode}")
    room = facts["CommitLimit"] - facts["Committed_AS"]
    # Libraries reserve more than they touch: twice as much for torch's own threads and arenas.
    needed = 2 * (wanted.need.host_bytes or _LEAST_HOST * wanted.ranks)
    found = f"mode 2, {format_bytes(room)} may still be promised"
    if room >= needed:
        return passed("overcommit", found)
    return failed(
        "overcommit",
        f"{found}, {format_bytes(needed)} needed",
        "the kernel refuses memory that is reserved and never touched, and libraries reserve much",
        "sysctl vm.overcommit_memory=0",
        "space",
    )


def check_memory_speed(wanted: Wanted) -> Iterator[Finding]:
    """Copy memory with all cores for a third of a second."""
    size = 32 << 20
    cores = len(os.sched_getaffinity(0))
    if read_available_bytes() < _LEAST_HOST // 2 + 2 * size * cores:
        yield skipped("memory_speed", "too little memory is free to measure it")
        return
    rate = _measure(size, min(cores, 16), 0.3)
    found = f"{rate / 1e9:.1f} GB/s read and written"
    if rate < _SLOW_MEMORY:
        yield failed(
            "memory_speed",
            found,
            "an optimizer in host memory is as slow as the memory",
            "see what else runs here (top), and whether the virtual machine is short of memory",
        )
    else:
        yield passed("memory_speed", found)


def _measure(size: int, threads: int, seconds: float) -> float:
    import numpy as np

    def copy(_: int) -> tuple[int, float]:
        source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)
        moved, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            np.copyto(target, source)  # Without Python's lock.
            moved += 2 * size
        return moved, elapsed

    with ThreadPoolExecutor(threads) as pool:
        return sum(moved / elapsed for moved, elapsed in pool.map(copy, range(threads)))

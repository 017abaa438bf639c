"""What the processor can do, and how much of it there is for the ranks."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path

from bigft.distributed.memory import find_groups
from bigft.doctor.finding import Finding, failed, passed, skipped
from bigft.doctor.wanted import Wanted, find_tool

_CPUINFO = Path("/proc/cpuinfo")


def check_cpu(wanted: Wanted) -> Iterator[Finding]:
    """Judge instruction sets and cores."""
    yield _check_instructions(wanted, read_instructions())
    yield _check_cores(wanted, len(os.sched_getaffinity(0)), read_quota())


def read_instructions() -> frozenset[str]:
    """Return the flags that the kernel lists of the processor."""
    for line in _CPUINFO.read_text().splitlines():
        name, _, values = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(values.split())
    return frozenset()


def read_quota() -> float | None:
    """Return the cores' worth of time that control groups allow; None: no limit."""
    quotas = []
    for folder in find_groups(controller="cpu"):
        both = folder / "cpu.max"
        if both.is_file():
            quota, period = both.read_text().split()
        elif (folder / "cpu.cfs_quota_us").is_file():
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        else:
            continue
        if quota not in ("max", "-1"):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _check_instructions(wanted: Wanted, flags: frozenset[str]) -> Finding:
    if platform.machine() not in ("x86_64", "AMD64"):
        return skipped("instructions", f"{platform.machine()}: judged on x86-64 alone")
    known = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    found = ", ".join(known) or "neither AVX2 nor AVX-512"
    if "avx2" not in flags:
        return failed(
            "instructions",
            found,
            "an optimizer in host memory takes a step many times slower, and parts of torch do not"
            " run at all",
            "use another host; in a virtual machine, pass the host's processor through",
        )
    if wanted.uses_cpu_adam and wanted.is_bf16 and "avx512f" not in flags:
        return failed(
            "instructions",
            found,
            "without AVX-512 DeepSpeed's CPU Adam steps bf16 weights one number at a time",
            'drop the "optimizer" block of the JSON: bigft\'s own step uses AVX2',
        )
    return passed("instructions", found)


def _check_cores(wanted: Wanted, allowed: int, quota: float | None) -> Finding:
    total = os.cpu_count() or allowed
    cores = allowed if quota is None else min(allowed, quota)
    found = f"{cores:g} of {total} for {wanted.ranks} rank{'s' if wanted.ranks > 1 else ''}"
    if find_tool("numactl", wanted.environ) is None:
        found += "; no numactl, so no --bind_cores_to_rank"
    if cores < wanted.ranks:
        limit = "the process is bound to them (taskset, numactl)"
        if quota is not None and quota < allowed:
            limit = "a control group limits its time"
        return failed(
            "cores",
            found,
            f"ranks that share a core wait for each other in every collective; {limit}",
            f"give {wanted.ranks} cores (docker run --cpus, srun --cpus-per-task), or start fewer"
            " ranks",
        )
    return passed("cores", found)

"""How another process of this host ended, for somebody who is not its parent."""

import contextlib
import fcntl
import shutil
import signal
import struct
from pathlib import Path

from bigft.distributed.memory import HostMemory
from bigft.units import format_bytes

# PIDFD_GET_INFO with PIDFD_INFO_EXIT (Linux 6.15), which answers also after the parent has waited:
# 64 bytes, the first 8 say what is asked for and what was found, the last 4 are the status.
_GET_INFO = 0xC040FF0B
_EXIT = 1 << 3
_INFO = struct.Struct("Q52xi")

_LESS_MEMORY = (
    "keep more on NVMe (--config ds_configs/zero3_nvme.json), lower --per_device_train_batch_size,"
    " start fewer ranks per host, or use --optim adamw_8bit"
)


def read_exit(pid: int, pidfd: int) -> int | None:
    """Read the exit code of a process that has ended, or minus the signal that ended it.

    Returns:
        None when nobody can say any more: its parent has collected it, and the kernel is old.
    """
    status = _read_zombie(pid)
    if status is None:
        status = _ask_pidfd(pidfd)
    if status is None:
        return None
    return -(status & 0x7F) if status & 0x7F else status >> 8


def _read_zombie(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may contain anything, also a parenthesis.
    fields = text.rpartition(")")[2].split()
    return int(fields[49]) if fields[0] == "Z" else None


def _ask_pidfd(pidfd: int) -> int | None:
    buffer = bytearray(_INFO.pack(_EXIT, 0))
    with contextlib.suppress(OSError):
        fcntl.ioctl(pidfd, _GET_INFO, buffer)
        found, status = _INFO.unpack(buffer)
        return status if found & _EXIT else None
    return None


def explain_exit(code: int, before: HostMemory, last: HostMemory, now: HostMemory) -> str:
    """Say in words why a process ended, with the numbers that belong to it.

    Args:
        code: As `read_exit` returns it.
        before: Memory when the run started.
        last: The last reading before the end.
        now: The reading after it.
    """
    if code >= 0:
        return f"left with exit code {code}"
    name = _find_name(-code)
    if -code == signal.SIGKILL and now.kills > before.kills:
        what = "its control group" if last.is_grouped else "this host"
        return (
            f"was ended by the kernel (SIGKILL) because host memory ran out: {what} has"
            f" {format_bytes(last.limit_bytes)}, of which {format_bytes(last.used_bytes)} were in"
            f" use at the last look. To need less: {_LESS_MEMORY}"
        )
    return f"was ended by {name}{_explain_signal(-code, last)}"


def _explain_signal(number: int, last: HostMemory) -> str:
    if number == signal.SIGKILL:
        return (
            f" from outside; the kernel reports no lack of memory ({format_bytes(last.used_bytes)}"
            f" of {format_bytes(last.limit_bytes)} were in use). Somebody, a scheduler or a"
            " container's manager has ended it"
        )
    if number == signal.SIGBUS:
        return f": shared memory or a mapped file could not be extended{_measure_shared_memory()}"
    if number in (signal.SIGSEGV, signal.SIGILL, signal.SIGFPE):
        return ": a crash in native code; the end of its log has the Python stack"
    if number == signal.SIGABRT:
        return ": native code gave up; the end of its log says why"
    return ""


def _measure_shared_memory() -> str:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return ""
    return (
        f". /dev/shm has {format_bytes(usage.free)} free of {format_bytes(usage.total)}; give the"
        " container more (docker run --shm-size=16g), or free a full disk"
    )


def _find_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

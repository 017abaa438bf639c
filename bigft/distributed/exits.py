"""How another process of this host ended, for somebody who is not its parent."""

import contextlib
import fcntl
import shutil
import signal
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigft.distributed.failures import LESS_HOST_MEMORY, find_failure
from bigft.distributed.memory import HostMemory
from bigft.distributed.place import Facts, describe_place
from bigft.errors import BigftError
from bigft.units import format_bytes

# PIDFD_GET_INFO with PIDFD_INFO_EXIT (Linux 6.15), which answers also after the parent has waited:
# 64 bytes, the first 8 say what is asked for and what was found, the last 4 are the status.
_GET_INFO = 0xC040FF0B
_EXIT = 1 << 3
_INFO = struct.Struct("Q52xi")

_NO_ROOM = 1 << 20
_TAIL_BYTES = 64 << 10

_CRASH = ": a crash in native code; the end of its log has the Python stack"
_OTHER_SIGNALS: dict[int, str] = {
    signal.SIGABRT: ": native code gave up; the end of its log says why",
    signal.SIGSEGV: _CRASH,
    signal.SIGFPE: _CRASH,
    signal.SIGILL: ": an instruction that this CPU does not have. Operators that were built on"
    " another machine have such: remove the folder TORCH_EXTENSIONS_DIR (default"
    " ~/.cache/torch_extensions), they are built anew",
}


def read_exit(pid: int, pidfd: int) -> int | None:
    """Read the exit code of a process that has ended, or minus the signal that ended it.

    Returns:
        None when nobody can say any more: its parent has collected it, and the kernel is old.
    """
    with contextlib.suppress(OSError):
        code = parse_status(Path(f"/proc/{pid}/stat").read_text())
        if code is not None:
            return code
    status = _ask_pidfd(pidfd)
    return None if status is None else _to_code(status)


def find_code(error: BaseException) -> int:
    """Foresee the exit code of this process when an error ends it."""
    if isinstance(error, BigftError):
        return error.exit_code
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code or 1
    return 1


def parse_status(text: str) -> int | None:
    """Read the exit code from a `/proc/PID/stat`; None when that process has not ended."""
    # The name in parentheses may contain anything, also a parenthesis.
    fields = text.rpartition(")")[2].split()
    return _to_code(int(fields[49])) if fields[0] == "Z" else None


def _to_code(status: int) -> int:
    return -(status & 0x7F) if status & 0x7F else status >> 8


def _ask_pidfd(pidfd: int) -> int | None:
    buffer = bytearray(_INFO.pack(_EXIT, 0))
    with contextlib.suppress(OSError):
        fcntl.ioctl(pidfd, _GET_INFO, buffer)
        found, status = _INFO.unpack(buffer)
        return status if found & _EXIT else None
    return None


@dataclass(frozen=True)
class End:
    """What is known when the end of a process is to be explained."""

    last: HostMemory
    """The last reading before it; `kills` is that of the start of the run."""
    now: HostMemory
    facts: Facts = field(default_factory=dict)
    """What the process has noted, or one beside it."""
    rank: int = 0


def explain_exit(code: int, end: End) -> str:
    """Say in words why a process ended, with the numbers that belong to it.

    Args:
        code: As `read_exit` returns it.
        end: Memory and notes of before and after.
    """
    if code >= 0:
        return f"left with exit code {code}"
    where = f". This happened {describe_place(end.facts)}" if "phase" in end.facts else ""
    if -code == signal.SIGKILL and end.now.kills > end.last.kills:
        return (
            f"was ended by the kernel (SIGKILL) because host memory ran out:"
            f" {describe_memory(end.last, end.facts)}. To need less: {LESS_HOST_MEMORY}{where}"
        )
    return f"was ended by {_find_name(-code)}{_explain_signal(-code, end)}{where}"


def describe_memory(memory: HostMemory, facts: Facts) -> str:
    """Say how much host memory there is, what was in use, and what the plan had foreseen."""
    what = "its control group" if memory.is_grouped else "this host"
    text = (
        f"{what} has {format_bytes(memory.limit_bytes)}, of which"
        f" {format_bytes(memory.used_bytes)} were in use at the last look"
    )
    if "rss_bytes" in facts:
        text += f" ({format_bytes(facts['rss_bytes'])} by this rank)"
    if "planned_host_bytes" in facts:
        text += f"; the plan was {format_bytes(facts['planned_host_bytes'])}"
    return text


def _explain_signal(number: int, end: End) -> str:
    if number == signal.SIGKILL:
        return (
            " from outside; the kernel reports no lack of memory"
            f" ({format_bytes(end.last.used_bytes)} of {format_bytes(end.last.limit_bytes)} were in"
            " use). Somebody, a scheduler or a container's manager has ended it"
        )
    if number == signal.SIGBUS:
        return f": shared memory or a mapped file could not be extended. {_find_full(end.facts)}"
    if number == signal.SIGABRT:
        failure = find_failure(_read_tail(end))
        if failure is not None:
            return f": {failure.what}. {failure.repair}"
    return _OTHER_SIGNALS.get(number, "")


def _find_full(facts: Facts) -> str:
    """Say which of the places that processes map files from has no room, and what to do."""
    shared = _measure("/dev/shm")
    if shared is not None:
        # What the dead had there may have gone with them.
        free = min(shared.free, facts.get("shared_free_bytes", shared.free))
        text = f"/dev/shm has {format_bytes(free)} free of {format_bytes(shared.total)}"
        repair = "give the container more (docker run --shm-size=16g, or `mount -o remount,size=`)"
        if free < max(_NO_ROOM, shared.total // 100):
            return f"{text}; {repair}"
    else:
        text, repair = "there is no /dev/shm", "give the container one (docker run --shm-size=16g)"
    for folder in facts.get("folders", []):
        disk = _measure(folder)
        if disk is not None and disk.free < max(_NO_ROOM, disk.total // 100):
            return (
                f"{folder} has {format_bytes(disk.free)} free of {format_bytes(disk.total)}; free"
                " space there"
            )
    return f"{text}; {repair}, or free a full disk"


def _measure(folder: str) -> Any:
    try:
        return shutil.disk_usage(folder)
    except OSError:
        return None


def _read_tail(end: End) -> str:
    """Read the end of a rank's log, where native code has written before it gave up."""
    with contextlib.suppress(OSError, KeyError):
        path = Path(end.facts["folder"]) / "log" / f"rank_{end.rank:02d}.log"
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    return ""


def _find_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

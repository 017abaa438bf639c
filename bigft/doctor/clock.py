"""Whether the clock can be believed."""

import ctypes
import time
from collections.abc import Iterator
from pathlib import Path

import bigft
from bigft.doctor.finding import Finding, failed, passed
from bigft.doctor.wanted import Wanted

_DAY = 86_400
_UNSYNCHRONISED = 0x40  # STA_UNSYNC of <sys/timex.h>.


def check_clock(wanted: Wanted) -> Iterator[Finding]:
    """Compare the clock with the files of this very program."""
    package = Path(bigft.__file__).parent
    written = max(path.stat().st_mtime for path in package.glob("*.py"))
    now = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < written - _DAY:
        yield failed(
            "clock",
            f"{shown}, {(written - now) / _DAY:.0f} days before this program was written",
            "certificates, caches and the order of checkpoints are judged by it",
            "timedatectl set-ntp true   (or: date -s ...)",
        )
    else:
        yield passed("clock", shown + describe_synchronisation())


def describe_synchronisation() -> str:
    """Say whether the kernel knows that the clock is kept right; a guest's may be by its host."""
    # `status` of `struct timex` comes after one int, padded, and four longs.
    buffer = (ctypes.c_long * 64)()
    adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
    if adjtimex is None or adjtimex(buffer) < 0:
        return ""
    status = ctypes.c_int.from_buffer(buffer, 5 * ctypes.sizeof(ctypes.c_long)).value
    return ", not kept in step by NTP" if status & _UNSYNCHRONISED else ", kept in step by NTP"

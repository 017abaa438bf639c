"""All checks of one host: those that measure one after the other, the rest side by side."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from bigft.doctor.clock import check_clock
from bigft.doctor.cpu import check_cpu
from bigft.doctor.finding import Finding, failed, skipped
from bigft.doctor.gpu import check_gpus
from bigft.doctor.limits import check_limits
from bigft.doctor.memory import check_memory, check_memory_speed
from bigft.doctor.storage import check_caches, check_disk_speed, check_nvme, check_run_folder
from bigft.doctor.tools import check_compiler, check_native_step, check_operators
from bigft.doctor.versions import check_versions
from bigft.doctor.wanted import Wanted

Check = Callable[[Wanted], Iterable[Finding]]

AREAS: Mapping[str, tuple[Check, ...]] = {
    "versions": (check_versions,),
    "tools": (check_compiler, check_native_step),
    "operators": (check_operators,),
    "cpu": (check_cpu,),
    "limits": (check_limits,),
    "memory": (check_memory,),
    "storage": (check_run_folder, check_nvme, check_caches),
    "gpu": (check_gpus,),
    "clock": (check_clock,),
}
"""Part -> its checks, in the order in which they are shown."""

MEASURED: Mapping[str, tuple[Check, ...]] = {
    "memory": (check_memory_speed,),
    "storage": (check_disk_speed,),
}
"""Those that measure, each alone on the host."""

_SECONDS = 10.0
_SLOW_SECONDS: Mapping[Check, float] = {
    check_operators: 70.0,
    check_gpus: 130.0,
    check_compiler: 30.0,
}
"""Time limits; those of checks that ask programs are above the programs' own."""


def examine(wanted: Wanted, areas: Sequence[str] = ()) -> list[Finding]:
    """Look at one host.

    Args:
        wanted: What the run will use.
        areas: Keys of `AREAS`; empty: all.
    """
    chosen = [area for area in AREAS if not areas or area in areas]
    found: dict[Check, list[Finding]] = {}
    for area in chosen:
        for check in MEASURED.get(area, ()):
            found[check] = _Patient([check], wanted).wait()[check]
    found |= _Patient([check for area in chosen for check in AREAS[area]], wanted).wait()
    order = [check for area in chosen for check in (*AREAS[area], *MEASURED.get(area, ()))]
    return [finding for check in order for finding in found[check]]


class _Patient:
    """Checks under way, each in a thread that nobody has to wait for.

    A thread that asks a dead network file system does not come back, and must not keep the
    doctor: it ends with the process.
    """

    def __init__(self, checks: list[Check], wanted: Wanted) -> None:
        self._found: dict[Check, list[Finding]] = {check: [] for check in checks}
        self._errors: dict[Check, BaseException] = {}
        self._start = time.monotonic()
        self._threads = {
            check: threading.Thread(target=self._run, args=(check, wanted), daemon=True)
            for check in checks
        }
        for thread in self._threads.values():
            thread.start()

    def wait(self) -> dict[Check, list[Finding]]:
        return {check: list(self._wait_for(check)) for check in self._threads}

    def _run(self, check: Check, wanted: Wanted) -> None:
        try:
            for finding in check(wanted):
                self._found[check].append(finding)
        except BaseException as error:  # noqa: BLE001  # Raised again where it is waited for.
            self._errors[check] = error

    def _wait_for(self, check: Check) -> Iterator[Finding]:
        limit = _SLOW_SECONDS.get(check, _SECONDS)
        thread = self._threads[check]
        thread.join(max(0.0, self._start + limit - time.monotonic()))
        yield from list(self._found[check])
        name = check.__name__.removeprefix("check_")
        if thread.is_alive():
            yield failed(
                name,
                f"no answer in {limit:.0f} s",
                "a disk or a network folder that does not answer stops a run as well",
                "dmesg | tail   and: mount | grep nfs",
            )
        elif isinstance(error := self._errors.get(check), OSError):
            # What this host does not let anybody see is no fault of it.
            yield skipped(name, f"cannot be looked at: {error}")
        elif error is not None:
            raise error

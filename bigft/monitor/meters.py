"""What a step costs: seconds by phase, memory, and the share of the peak rate (MFU)."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from bigft.distributed.devices import find_device
from bigft.distributed.waits import WAITS

PHASES = ("data", "forward", "backward", "optimizer")


class PhaseClock:
    """Seconds spent in each phase of a step.

    On an accelerator the phases overlap with Python, so they are measured by events in the
    stream and read once per logged step; on a CPU by the wall clock.
    """

    def __init__(self, device: torch.device) -> None:
        """Measure on `device`."""
        self._on_cpu = device.type == "cpu"
        self._device = device
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self.own = dict.fromkeys(PHASES, 0.0)
        """Seconds that this rank has worked by itself since the start, without waiting for others
        (`measure_waits`). On an accelerator only of `data`, which the host does."""
        self._events: list[tuple[str, torch.Event, torch.Event]] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block under this phase."""
        if self._on_cpu or name == "data":
            started, waited = time.perf_counter(), WAITS.seconds
            yield
            spent = time.perf_counter() - started
            self._seconds[name] += spent
            self.own[name] += max(0.0, spent - (WAITS.seconds - waited))
            return
        begin, end = (torch.Event(self._device, enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._events.append((name, begin, end))

    def read(self) -> dict[str, float]:
        """Return seconds per phase since the last reading, and start again.

        Waits for the device.
        """
        for name, begin, end in self._events:
            end.synchronize()
            self._seconds[name] += begin.elapsed_time(end) / 1000
        result = self._seconds
        self._events = []
        self._seconds = dict.fromkeys(PHASES, 0.0)
        return result


def read_rss_bytes() -> int:
    """Resident host memory of this process, in bytes."""
    return _read_status("VmRSS")


def read_peak_rss_bytes() -> int:
    """Return the most host memory that this process has had resident, in bytes."""
    return _read_status("VmHWM")


def _read_status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/self/status")


def read_device_peak_bytes(device: torch.device) -> int:
    """Peak device memory of this process since the last reading, in bytes; 0 on a CPU."""
    if device.type == "cpu":
        return 0
    peak = int(torch.accelerator.max_memory_allocated(device))
    torch.accelerator.reset_peak_memory_stats(device)
    return peak


def find_peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of this device in FLOP/s, or None rather than a guess."""
    if device.type != "cuda":
        return None
    facts = find_device(torch.cuda.get_device_name(device))
    return facts.peak if facts else None


def count_flops_per_token(
    num_parameters: int, num_layers: int, hidden_size: int, length: int
) -> float:
    """Model FLOPs of one trained token, without recomputation.

    1) Matrices: 2 FLOPs per weight forward, twice that backward: 6 N.
    2) Attention scores and their use: 2 products of `length x hidden` per layer, causal (half),
       forward and twice backward: 6 * layers * hidden * length.
    """
    return 6.0 * num_parameters + 6.0 * num_layers * hidden_size * length

"""All measurements, one after the other, and what becomes of them."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bigft.errors import LaunchError
from bigft.planner.known import KnownRates, number_disk, save_known
from bigft.planner.local import count_cores, find_existing, read_cpu, read_gpus
from bigft.planner.machine import SliceMeasurement
from bigft.probe.disk import NoRoomError, measure_disk
from bigft.probe.links import (
    measure_device_memory,
    measure_host_memory,
    measure_host_step,
    measure_matrix,
    measure_pcie,
)
from bigft.probe.slice import SliceError, SliceJob, measure_slice
from bigft.probe.timing import SECONDS, Reading

Report = Callable[[str], None]

_UNITS = {"matrix": (1e12, "TFLOP/s"), "step": (1e6, "million parameters/s")}


@dataclass(frozen=True)
class Probe:
    """What was measured."""

    readings: dict[str, Reading] = field(default_factory=dict)
    """By the names of `KnownRates.rates`."""

    slice: SliceMeasurement | None = None
    notes: tuple[str, ...] = ()
    """What was left out, and why."""

    known: KnownRates = field(default_factory=KnownRates)
    """The same as plans take it (`bigft.planner.hardware.use_known`)."""

    seconds: float = 0.0


class _Collector:
    """Readings and notes, said as they come."""

    def __init__(self, report: Report) -> None:
        self.readings: dict[str, Reading] = {}
        self.notes: list[str] = []
        self._report = report

    def add(self, name: str, reading: Reading) -> None:
        self.readings[name] = reading
        scale, unit = _UNITS.get(name.partition("_")[0], (1e9, "GB/s"))
        shown = name.partition(":")[0].replace("_", " ")
        self._report(
            f"{shown}: {reading.per_second / scale:.2f} {unit}, rounds {reading.spread:.0%} apart"
        )

    def note(self, text: str) -> None:
        self.notes.append(text)
        self._report(text)


def probe(
    *,
    output_dir: Path,
    nvme_path: Path | None = None,
    job: SliceJob | None = None,
    seconds: float = SECONDS,
    report: Report = lambda _: None,
    cache: Path | None = None,
) -> Probe:
    """Measure this machine, and a slice of a model on it; about 20 s.

    Args:
        output_dir: Where the run folder will be; its disk is measured without `nvme_path`.
        nvme_path: Where offloaded tensors will be.
        job: The slice; None: only rates.
        seconds: Limit of each measurement.
        report: Gets a line for each.
        cache: File for what was measured; absent: the user's.
    """
    started = time.perf_counter()
    found, cores = _Collector(report), count_cores()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        for name, reading in _measure_units(device, seconds):
            found.add(name, reading)
        _measure_steps(found, seconds)
    finally:
        torch.set_num_threads(before)
    _measure_folder(found, find_existing(nvme_path or output_dir), seconds)
    if device.type == "cuda":
        _measure_link(found, device, seconds)
        torch.cuda.empty_cache()
    found.note("network: not measured, that takes two hosts; --network says how fast it is")
    measured = None
    if job is not None:
        try:
            measured = measure_slice(job)
        except SliceError as error:
            found.note(f"slice of the model: not measured, {error}")
    rates = {name: reading.per_second for name, reading in found.readings.items()}
    slices = {} if job is None or measured is None else {job.name: measured}
    known = KnownRates(rates, slices)
    # As `read_machine` names it, which has no torch to ask.
    gpus = read_gpus()
    try:
        save_known(gpus[0].name if gpus else read_cpu().name, cores, known, cache)
    except OSError as error:
        found.note(f"later plans will not know this: {error}")
    spent = time.perf_counter() - started
    return Probe(found.readings, measured, tuple(found.notes), known, spent)


def _measure_units(device: torch.device, seconds: float) -> Iterator[tuple[str, Reading]]:
    yield "host_memory", measure_host_memory(seconds)
    yield "matrix_bf16", measure_matrix(device, torch.bfloat16, seconds)
    yield "matrix_fp32", measure_matrix(device, torch.float32, seconds)
    if device.type == "cuda":
        yield "device_memory", measure_device_memory(device, seconds)


def _measure_steps(found: _Collector, seconds: float) -> None:
    for name in ("adamw", "adamw_8bit"):
        try:
            found.add(f"step_{name}", measure_host_step(name, seconds))
        except LaunchError as error:
            found.note(f"step of {name} in host memory: not measured, {error}")


def _measure_folder(found: _Collector, folder: Path, seconds: float) -> None:
    try:
        read, written, is_direct = measure_disk(folder, seconds)
    except (NoRoomError, OSError) as error:
        found.note(f"disk: not measured, {error}; --nvme 2TB@7/6 says how fast one is")
        return
    number = number_disk(folder)
    found.add(f"disk_read:{number}", read)
    found.add(f"disk_write:{number}", written)
    if not is_direct:
        found.note(f"{folder} has no direct I/O: what was read may have come from memory")


def _measure_link(found: _Collector, device: torch.device, seconds: float) -> None:
    to, back = measure_pcie(device, seconds)
    slower = min(to, back, key=lambda reading: reading.per_second)
    found.add("pcie", slower)

"""The machine of a plan: this one, or another one that flags describe.

    this machine --read_machine--> Machine <--parse_machine-- --gpus 4x24GB --nvme 2TB@7/6 ...

What flags leave out is read here as long as they name no GPUs. With GPUs named the plan is for
another machine, and the rest is what is typical of one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from bigft.distributed.devices import DEVICES, DeviceFacts, find_device
from bigft.distributed.memory import read_available_bytes
from bigft.errors import ConfigError, raise_together
from bigft.planner.known import KnownRates, load_known
from bigft.planner.local import (
    Cpu,
    count_cores,
    find_existing,
    read_cpu,
    read_free_disk,
    read_gpus,
    read_network_rate,
    read_pinned_limit,
)
from bigft.planner.machine import Machine, Origin, Rate, Rates
from bigft.planner.networks import find_network
from bigft.units import parse_bytes

Precision = Literal["bf16", "fp16", "fp32"]
_T = TypeVar("_T")

_SHM = Path("/dev/shm")

_READ = (
    *("device_bytes", "ranks_per_host", "host_bytes", "shared_memory_bytes", "pinned_bytes"),
    *("disk_bytes", "nvme_bytes", "cores"),
)
"""Fields that this machine says of itself."""

_CORE_FLOPS = {
    "amx": (800e9, 70e9),
    "avx512_bf16": (130e9, 60e9),
    "avx512": (40e9, 60e9),
    "avx2": (20e9, 40e9),
    "neon": (20e9, 25e9),
    "plain": (2e9, 4e9),
}
"""FLOP per second and core of products in bf16 and in fp32 by oneDNN. The second row was measured
(Zen 4, 2.6 GHz); the others are set beside it by the width of their registers."""

_GLOO = 1.2e9
"""Bytes per second between two ranks on CPUs: collectives go through sockets."""

_DISK_READ, _DISK_WRITE = 2.5e9, 1.5e9
_NETWORK = 1.1e9  # 10 Gbit/s with TCP.

_DESK_MEMORY, _SERVER_MEMORY, _CORE_MEMORY = 65e9, 200e9, 15e9
"""Bytes per second: two channels of DDR5, eight of a server, and what one core can ask for."""

_LIKE = {16: "T4", 24: "RTX 4090", 32: "RTX 5090", 40: "A100-SXM4-40GB", 48: "RTX A6000"}
_LIKE |= {80: "A100", 141: "H200", 180: "B200"}
"""Whose rates a GPU is given of which only the memory is known, by GB."""


@dataclass(frozen=True)
class Given:
    """Hardware as flags have it; an empty text is not given."""

    gpus: str = ""
    """Of each host: `4x24GB`, `8xH100`, `0`."""

    host_memory: str = ""
    nvme: str = ""
    """`2TB@7/6`: size, and GB/s read and written; each part may be left out."""

    hosts: int | None = None
    pcie: str = ""
    """Bytes per second: `25GB`."""

    network: str = ""
    """Bits or bytes per second: `10Gb`, `1.25GB`."""


def read_machine(
    *,
    output_dir: Path,
    nvme_path: Path | None = None,
    precision: Precision = "bf16",
    ranks: int | None = None,
    hosts: int = 1,
) -> Machine:
    """Read what this machine is, without torch.

    Args:
        output_dir: Where the run folder will be; it need not exist.
        nvme_path: Where offloaded tensors will be.
        precision: What the model computes in.
        ranks: Of each host; absent: one per GPU, or one.
        hosts: As many machines like this one.

    Returns:
        The machine. Rates are those of the last probe here where there was one, and between hosts
        those that the doctor measured last.
    """
    gpus, cpu, cores = read_gpus(), read_cpu(), count_cores()
    local = ranks or max(1, len(gpus))
    if gpus:
        name = gpus[0].name
        rates = _rate_gpu(find_device(name) or DEVICES["T4"], precision, cores)
        if gpus[0].pcie:
            rates = replace(rates, pcie=Rate(gpus[0].pcie, "typical"))
    else:
        name, rates = cpu.name, _rate_cpu(cpu, precision, cores, local)
    if speed := read_network_rate():
        rates = replace(rates, network=Rate(speed * 0.9, "typical"))
    known = load_known(name, cores)
    if hosts > 1 and (network := find_network("nccl" if gpus else "gloo")):
        rates = replace(rates, network=network.rate, hop=network.hop)
    machine = Machine(
        device="cuda" if gpus else "cpu",
        device_name=name,
        # 0: not said, as by those that share the host's memory.
        device_bytes=min((gpu.free_bytes for gpu in gpus[:local]), default=0),
        ranks_per_host=local,
        hosts=hosts,
        host_bytes=read_available_bytes(),
        shared_memory_bytes=read_free_disk(_SHM) or 0,
        pinned_bytes=read_pinned_limit(),
        disk_bytes=read_free_disk(output_dir),
        nvme_bytes=None if nvme_path is None else read_free_disk(nvme_path),
        cores=cores,
        rates=rates,
        origins=dict.fromkeys(_READ, "measured"),
    )
    return use_known(machine, known, nvme_path or output_dir, precision)


def use_known(machine: Machine, known: KnownRates, folder: Path, precision: Precision) -> Machine:
    """Put what a probe has measured in place of what is typical.

    Args:
        machine: As it was read.
        known: What was measured on it.
        folder: Whose disk the run swaps to.
        precision: What the model computes in.
    """
    rates = machine.rates
    changes: dict[str, Any] = {}
    # GPUs are as fast in fp16 as in bf16; CPUs are not.
    alike = "bf16" if precision == "fp16" and machine.device == "cuda" else precision
    matrix = known.rates.get(f"matrix_{alike}")
    if matrix is not None:
        # All cores were measured together; the ranks of a host share them.
        share = machine.ranks_per_host if machine.device == "cpu" else 1
        changes["matrix"] = Rate(matrix / share, "measured")
    for name in ("device_memory", "host_memory", "pcie"):
        if name in known.rates:
            changes[name] = Rate(known.rates[name], "measured")
    for name in ("disk_read", "disk_write"):
        if (rate := known.find_disk(name, find_existing(folder))) is not None:
            changes[name] = Rate(rate, "measured")
    if machine.device == "cpu" and "host_memory" in known.rates:
        share = machine.ranks_per_host
        for name in ("device_memory", "pcie"):
            changes[name] = Rate(known.rates["host_memory"] / share, "measured")
    steps = {
        name.removeprefix("step_"): Rate(rate, "measured")
        for name, rate in known.rates.items()
        if name.startswith("step_")
    }
    return replace(machine, rates=replace(rates, host_steps=steps, **changes))


def parse_machine(
    given: Given,
    *,
    output_dir: Path,
    nvme_path: Path | None = None,
    precision: Precision = "bf16",
    ranks: int | None = None,
) -> Machine:
    """Build the machine that flags describe.

    Args:
        given: The flags.
        output_dir: Where the run folder will be; looked at when no GPUs are given.
        nvme_path: Where offloaded tensors will be; likewise.
        precision: What the model computes in.
        ranks: Of each host; absent: one per GPU, or one.

    Raises:
        ConfigError: A flag cannot be read; all of them are named.
    """
    reader = _Reader()
    gpus = reader.read("--gpus", given.gpus, _parse_gpus)
    host_bytes = reader.read("--host_memory", given.host_memory, _parse_size)
    nvme = reader.read("--nvme", given.nvme, _parse_nvme)
    pcie = reader.read("--pcie", given.pcie, _parse_size)
    network = reader.read("--network", given.network, _parse_network)
    if given.hosts is not None and given.hosts < 1:
        reader.problems.append(f"--hosts {given.hosts}: at least one host; write --hosts 2")
    if reader.problems:
        raise_together(ConfigError, reader.problems)
    hosts = given.hosts or 1
    if gpus is None:
        machine = read_machine(
            output_dir=output_dir,
            nvme_path=nvme_path,
            precision=precision,
            ranks=ranks,
            hosts=hosts,
        )
    else:
        machine = _imagine(gpus, precision, ranks, hosts)
    origins: dict[str, Origin] = dict(machine.origins)
    fields: dict[str, Any] = {}
    if given.hosts is not None:
        origins["hosts"] = "given"
    if host_bytes is not None:
        fields["host_bytes"] = host_bytes
    if nvme is not None and nvme.size is not None:
        # Another machine has this one disk.
        fields["nvme_bytes"] = nvme.size
        if gpus is not None:
            fields["disk_bytes"] = nvme.size
    origins.update(dict.fromkeys(fields, "given"))
    speeds = {"pcie": pcie, "network": network}
    if nvme is not None:
        speeds |= {"disk_read": nvme.read, "disk_write": nvme.write}
    changed: dict[str, Any] = {
        name: Rate(rate, "given") for name, rate in speeds.items() if rate is not None
    }
    return replace(machine, origins=origins, rates=replace(machine.rates, **changed), **fields)


@dataclass(frozen=True)
class _Gpus:
    count: int
    name: str
    memory: int
    facts: DeviceFacts | None
    """None: there is no GPU."""


@dataclass(frozen=True)
class _Nvme:
    size: int | None
    read: float | None
    write: float | None


@dataclass
class _Reader:
    """Reads flags, and remembers what could not be read."""

    problems: list[str] = field(default_factory=list)

    def read(self, flag: str, text: str, parse: Callable[[str], _T]) -> _T | None:
        if not text:
            return None
        try:
            return parse(text.strip())
        except ValueError as error:
            self.problems.append(f"{flag} {text}: {error}")
            return None


def _parse_gpus(text: str) -> _Gpus:
    if text == "0":
        return _Gpus(0, "", 0, None)
    repair = "write how many each host has and of what: --gpus 4x24GB, 8xH100, or 0 for none"
    match = re.fullmatch(r"(\d+)\s*[xX]\s*(\S.*)", text)
    if not match or int(match[1]) == 0:
        raise ValueError(f"not a number of GPUs of one kind; {repair}")
    count, kind = int(match[1]), match[2].strip()
    for name in sorted(DEVICES, key=len):
        if f" {kind.lower()} " in f" {name.lower()} ":
            return _Gpus(count, name, int(DEVICES[name].memory), DEVICES[name])
    if facts := find_device(kind):
        return _Gpus(count, kind, int(facts.memory), facts)
    if not re.match(r"[\d.]+\s*[kKmMgGtT]", kind):
        known = ", ".join(DEVICES)
        raise ValueError(f"{kind!r} is neither a size nor one of {known}; {repair}")
    memory = parse_bytes(kind)
    like = _LIKE[min(_LIKE, key=lambda size: abs(size * 1e9 - memory))]
    return _Gpus(count, f"{kind} GPU, as fast as {like}", memory, DEVICES[like])


def _parse_size(text: str) -> int:
    size = parse_bytes(re.sub(r"/s$", "", text))
    if size <= 0:
        raise ValueError("not more than nothing; write it like 25GB")
    return size


def _parse_nvme(text: str) -> _Nvme:
    number = r"\d+(?:\.\d+)?"
    match = re.fullmatch(rf"([^@]*)(?:@({number})?(?:/({number}))?)?", text)
    if not match:
        raise ValueError(
            "not a size with GB/s read and written behind it; write --nvme 2TB@7/6, 2TB or @7/6"
        )
    size, read, write = (part or None for part in match.groups())
    speeds = [None if part is None else float(part) * 1e9 for part in (read, write)]
    if 0.0 in speeds:
        raise ValueError("a disk that moves nothing; write its GB/s: --nvme 2TB@7/6")
    return _Nvme(None if size is None else _parse_size(size), *speeds)


def _parse_network(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?\s*[kKmMgGtT]?)(b|B|bit|bps)(/s)?", text)
    if not match or not float(re.sub(r"[^\d.]", "", match[1])):
        raise ValueError("not a speed; write bits per second like 10Gb, or bytes like 1.25GB")
    return parse_bytes(match[1]) / (1 if match[2] == "B" else 8)


def _imagine(gpus: _Gpus, precision: Precision, ranks: int | None, hosts: int) -> Machine:
    """Build a machine with these GPUs and what is typical beside them."""
    local = ranks or max(1, gpus.count)
    # Servers that are sold have two to three times their GPUs' memory; desks some more.
    host_bytes = max(64 * 10**9, 3 * gpus.count * gpus.memory)
    cores = max(16, 8 * gpus.count)
    if gpus.facts is None:
        cpu = Cpu("a CPU with AVX-512", "avx512")
        rates = _rate_cpu(cpu, precision, cores, local)
    else:
        cpu = Cpu(gpus.name, "")
        rates = _rate_gpu(gpus.facts, precision, cores)
    return Machine(
        device="cuda" if gpus.count else "cpu",
        device_name=cpu.name,
        device_bytes=gpus.memory,
        ranks_per_host=local,
        hosts=hosts,
        host_bytes=host_bytes,
        shared_memory_bytes=host_bytes // 2,
        pinned_bytes=None,
        disk_bytes=None,
        nvme_bytes=None,
        cores=cores,
        rates=rates,
        origins={
            "device_bytes": "given",
            "ranks_per_host": "given",
            **dict.fromkeys(("host_bytes", "shared_memory_bytes", "cores"), "typical"),
        },
    )


def _rate_gpu(facts: DeviceFacts, precision: Precision, cores: int) -> Rates:
    # TF32 is off unless asked for; plain fp32 is a sixteenth in data centres, a half on desks.
    slower = 1.0 if precision != "fp32" else (1 / 16 if facts.sustained < 0.8 else 1 / 2)
    return Rates(
        matrix=_typical(facts.peak * facts.sustained * slower),
        device_memory=_typical(facts.memory_rate * 0.9),
        host_memory=_typical(_guess_memory_rate(cores)),
        pcie=_typical(facts.pcie),
        disk_read=_typical(_DISK_READ),
        disk_write=_typical(_DISK_WRITE),
        network=_typical(_NETWORK),
        peer=_typical(facts.peer),
    )


def _rate_cpu(cpu: Cpu, precision: Precision, cores: int, ranks: int) -> Rates:
    low, full = _CORE_FLOPS[cpu.instructions]
    memory = _guess_memory_rate(cores)
    of_rank = _typical(memory / ranks)
    return Rates(
        matrix=_typical((full if precision == "fp32" else low) * cores / ranks),
        device_memory=of_rank,
        host_memory=_typical(memory),
        # There is no link: what would cross it is copied in host memory.
        pcie=of_rank,
        disk_read=_typical(_DISK_READ),
        disk_write=_typical(_DISK_WRITE),
        network=_typical(_NETWORK),
        peer=_typical(_GLOO),
    )


def _guess_memory_rate(cores: int) -> float:
    return min(cores * _CORE_MEMORY, _DESK_MEMORY if cores <= 24 else _SERVER_MEMORY)


def _typical(per_second: float) -> Rate:
    return Rate(per_second, "typical")

"""The hardware that a run is planned for: what it holds, and how fast its links are."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Rate:
    """How fast a link or a unit is, and how that is known."""

    per_second: float
    """Bytes, or FLOP of matrix products."""

    origin: Literal["measured", "given", "typical"]


@dataclass(frozen=True)
class Rates:
    """What a step's time is made of."""

    matrix: Rate
    """FLOP per second that one rank's device sustains in matrix products of the run's format."""

    device_memory: Rate
    host_memory: Rate
    """Bytes read or written per second by all cores of a host together."""

    pcie: Rate
    """Bytes per second each way between one device and its host."""

    disk_read: Rate
    disk_write: Rate
    network: Rate
    """Bytes per second each way between two hosts."""

    peer: Rate
    """Bytes per second each way between two devices of one host."""


@dataclass(frozen=True)
class Machine:
    """One host, as many times as there are hosts."""

    device: Literal["cuda", "cpu"]
    """`cpu`: there is no GPU, and what would be on it is in host memory."""

    device_name: str
    device_bytes: int
    """Memory of one device that a run may use; 0 without a GPU."""

    ranks_per_host: int
    hosts: int
    host_bytes: int
    """Memory that a run may use on a host: free, and below the limit of its control group."""

    shared_memory_bytes: int
    """Of /dev/shm, free."""

    pinned_bytes: int | None
    """Limit of pinned memory per process (`ulimit -l`); None: no limit."""

    disk_bytes: int | None
    """Free where the run folder will be; None: unknown."""

    nvme_bytes: int | None
    """Free where `nvme_path` is; None: unknown."""

    cores: int
    rates: Rates

    @property
    def ranks(self) -> int:
        """Of all hosts."""
        return self.ranks_per_host * self.hosts

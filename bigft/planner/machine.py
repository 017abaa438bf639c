"""The hardware that a run is planned for: what it holds, and how fast its links are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Origin = Literal["measured", "given", "typical"]


@dataclass(frozen=True)
class Rate:
    """How fast a link or a unit is, and how that is known."""

    per_second: float
    """Bytes, or FLOP of matrix products."""

    origin: Origin
    note: str = ""
    """When and how it was measured."""


@dataclass(frozen=True)
class Hop:
    """A short message from one host to the next."""

    seconds: float
    note: str = ""
    """When and how it was measured."""


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

    hop: Hop | None = None
    """Measured between two hosts; None: typical."""

    host_steps: Mapping[str, Rate] = field(default_factory=dict)
    """Parameters per second that all cores of a host update, by the name of the optimizer; those
    that are missing follow from `host_memory`."""


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
    origins: Mapping[str, Origin] = field(default_factory=dict)
    """How the fields above are known, by their names."""

    @property
    def ranks(self) -> int:
        """Of all hosts."""
        return self.ranks_per_host * self.hosts


@dataclass(frozen=True)
class SliceMeasurement:
    """One micro-batch, forward and backward, of a model with the run's widths and few layers."""

    seconds_per_layer: float
    seconds_outside: float
    """Of embeddings, head and loss."""

    activation_bytes_per_layer: float
    """What a layer adds to the peak of memory, its weights and gradients not counted."""

    bytes_outside: float
    """The peak without layers: logits, the loss and temporaries."""

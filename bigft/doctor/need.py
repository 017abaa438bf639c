"""What a run needs of a host, as far as it is known."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Need:
    """Bytes on one host; None: unknown, and only what every run needs is asked for."""

    host_bytes: int | None = None
    """Memory of all ranks of the host together."""

    pinned_bytes: int | None = None
    """Locked memory of one rank."""

    shared_memory_bytes: int | None = None
    """In `/dev/shm`."""

    output_bytes: int | None = None
    """What the run leaves in its folder, the checkpoint that is being written included."""

    nvme_bytes: int | None = None
    """Swap files."""

"""DeepSpeed adopts the run's process group, and leaves nothing of its own behind."""

import contextlib
from pathlib import Path

import deepspeed
import torch

from bigft.errors import ConfigError

_SHARED_BUFFER = "/dev/shm/deepspeed_allreduce_buffer_"


def open_communication(device: torch.device) -> None:
    """Let DeepSpeed adopt the open process group. Collective: every rank.

    Raises:
        ConfigError: DeepSpeed and torch disagree on the accelerator.
    """
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    unlink_shared_buffers()
    _check_accelerator(device)


def unlink_shared_buffers() -> None:
    """Take the names of this run's all-reduce buffers off the disk. Collective: every rank.

    On the CPU accelerator DeepSpeed 0.19.8 makes one file of 66 MiB per rank in /dev/shm and never
    removes it: memory that no process uses and that stays until the machine restarts. Once every
    rank has mapped the files nobody needs their names, and without them the system frees the
    memory with the last process, however it ends.
    """
    torch.distributed.barrier()
    for path in _find_mapped_files(_SHARED_BUFFER):
        # Another rank of this run may have been first.
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _find_mapped_files(prefix: str) -> set[Path]:
    # DeepSpeed keeps the names to itself; the kernel lists what this process has mapped.
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return set()
    fields = (line.split(maxsplit=5) for line in maps.read_text().splitlines())
    names = {field[5] for field in fields if len(field) == 6}
    return {Path(n) for n in names if n.startswith(prefix) and not n.endswith("(deleted)")}


def _check_accelerator(device: torch.device) -> None:
    from deepspeed.accelerator import get_accelerator

    name = get_accelerator().device_name()
    if name != device.type:
        raise ConfigError(
            f"DeepSpeed chose the accelerator {name!r} but torch offers {device.type!r};"
            f" set DS_ACCELERATOR={device.type}"
        )

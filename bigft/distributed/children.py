"""Starting processes that are runs of their own, from one that may be a rank itself."""

import re
import socket
from collections.abc import Mapping

# What each starter sets, where `starters.py` would take a child for one of its ranks, and torch
# for one of torchrun's. What only describes a Slurm job stays: a child may call `srun`.
_OF_A_STARTER = re.compile(
    r"RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT|CROSS_RANK|CROSS_SIZE"
    r"|GROUP_RANK|GROUP_WORLD_SIZE|ROLE_(RANK|NAME|WORLD_SIZE)|TORCHELASTIC_\w+|PET_\w+"
    r"|SLURM_(PROCID|LOCALID|NODEID|GTIDS|TASK_PID|STEPID|STEP_\w+|PTY_\w+)"
    r"|OMPI_\w+|PMIX_\w+|PMI_\w+|PALS_\w+|MPI_LOCAL\w+|HYDI?_\w+|JOB_COMPLETION_INDEX"
)


def leave_launcher(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what makes a process a rank of somebody else's run."""
    return {name: text for name, text in environ.items() if not _OF_A_STARTER.fullmatch(name)}


def find_free_port() -> int:
    """Find a port for ranks to meet at; the launcher's own is one for the whole machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""Starting processes that are runs of their own, from one that may be a rank itself."""

import socket
from collections.abc import Mapping

_OF_A_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")


def leave_launcher(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what makes a process a rank of somebody else's run."""
    return {name: text for name, text in environ.items() if name not in _OF_A_LAUNCHER}


def find_free_port() -> int:
    """Find a port for ranks to meet at; the launcher's own is one for the whole machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""What one host has to do in a run: told to its agent as one line of JSON."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from bigft.launch.hostfile import Host

STOP_SECONDS = 600.0
"""How long ranks that are asked to stop may take to commit a checkpoint before they are ended."""


@dataclass(frozen=True)
class HostJob:
    """The part of one host in a start of a run."""

    host: str
    """Its name in the hostfile."""

    node_rank: int
    """Its place among the hosts."""

    world: Mapping[str, Sequence[int]]
    """Host -> the numbers of its devices, in the order of the ranks."""

    master_addr: str
    master_port: int

    folder: str
    """Where the ranks run; the same on every host."""

    words: Sequence[str]
    """The command line of bigft that every rank runs."""

    environ: Mapping[str, str] = field(default_factory=dict)
    """What the ranks get beside the environment of their host."""

    launch_id: str = ""
    """The same for all starts of a launch: leftovers are found by it."""

    def to_line(self) -> str:
        """Return it as one line."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> "HostJob":
        """Read what `to_line` wrote.

        Raises:
            ValueError, TypeError: It is something else.
        """
        return cls(**json.loads(line))

    @property
    def is_one_host(self) -> bool:
        """Whether there is no other host."""
        return len(self.world) == 1


def plan_world(hosts: Sequence[Host]) -> dict[str, list[int]]:
    """Number the devices that every host uses, in the order of the ranks."""
    return {host.name: list(host.devices or range(host.slots)) for host in hosts}


def encode_world(world: Mapping[str, Sequence[int]]) -> str:
    """Return DeepSpeed's `--world_info`.

    Its launcher gives local rank `rank % ranks of the host`, which turns the devices of hosts with
    unequal slots around; their order here is turned back by as much.
    """
    turned: dict[str, list[int]] = {}
    first = 0
    for host, devices in world.items():
        shift = first % len(devices)
        turned[host] = [devices[(place - shift) % len(devices)] for place in range(len(devices))]
        first += len(devices)
    return base64.urlsafe_b64encode(json.dumps(turned).encode()).decode()

"""What one host has to do in a run: told to its agent as one line of JSON."""

import base64
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bigft.launch.foreign import (
    read_object,
    take_list,
    take_table,
    take_text,
    take_whole,
)
from bigft.launch.hostfile import Host

STOP_SECONDS = 600.0
"""How long ranks that are asked to stop may take to commit a checkpoint before they are ended."""

LAUNCH_VARIABLE = "BIGFT_LAUNCH"
"""In the environment of everything that a launch starts."""

WORDS_VARIABLE = "BIGFT_WORDS"
"""In which the ranks find their command line."""

_LONGEST_VARIABLE = 128 << 10
"""Of an environment variable, name and value: Linux takes no longer ones (MAX_ARG_STRLEN)."""
_MOST_BYTES = 1 << 20
"""Of all that the ranks get; with more of it some hosts start no program."""
_MOST = 100_000


# The settings are not on the command line of the ranks, either: every user of a host sees those.
RANK_PROGRAM = (
    "import json, os; from bigft.cli import main;"
    f" main(json.loads(os.environ.pop({WORDS_VARIABLE!r})))"
)
"""What every rank runs, for `python -c`."""


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

    token: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    """By which the report of the agent is known; the ranks do not get it."""

    def to_line(self) -> str:
        """Return it as one line."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> "HostJob":
        """Read what `to_line` wrote.

        Raises:
            ValueError: It is something else.
        """
        data = read_object(line)
        world = take_table(data, "world")
        words = [*take_list(data, "words", _MOST)]
        environ = take_table(data, "environ")
        job = cls(
            host=take_text(data, "host"),
            node_rank=take_whole(data, "node_rank", 0, _MOST),
            world={host: _read_devices(devices) for host, devices in world.items()},
            master_addr=take_text(data, "master_addr"),
            master_port=take_whole(data, "master_port", 1, 65535),
            folder=take_text(data, "folder"),
            words=words,
            environ=environ,
            launch_id=take_text(data, "launch_id"),
            token=take_text(data, "token"),
        )
        if job.host not in world or job.node_rank >= len(world):
            raise ValueError("no proper world")
        if not all(isinstance(word, str) for word in words):
            raise ValueError("no proper words")
        if not all(isinstance(text, str) and "\0" not in text for text in environ.values()):
            raise ValueError("no proper environ")
        return job

    def find_only_rank(self) -> int | None:
        """Return the rank of this host, where there is only one."""
        if len(self.world[self.host]) > 1:
            return None
        names = list(self.world)
        return sum(len(self.world[name]) for name in names[: names.index(self.host)])


def find_too_long(words: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Say what no process could be started with: what is too long for its environment."""
    total = len(json.dumps(list(words)))
    problems = []
    if total + len(WORDS_VARIABLE) + 2 > _LONGEST_VARIABLE:
        problems.append(
            f"the command line behind -- has {total:,} characters; put settings into a recipe"
        )
    for name, text in environ.items():
        length = len(name) + len(text.encode("utf-8", "surrogateescape")) + 2
        total += length
        if length > _LONGEST_VARIABLE:
            problems.append(
                f"the variable {name} has {length:,} bytes, {_LONGEST_VARIABLE:,} are possible;"
                " put it into a file"
            )
    if not problems and total > _MOST_BYTES:
        problems.append(
            f"command line and variables have {total:,} bytes, {_MOST_BYTES:,} are possible; pass"
            " fewer variables on"
        )
    return problems


def _read_devices(value: Any) -> list[int]:
    is_list = isinstance(value, list) and 0 < len(value) < _MOST
    if not is_list or not all(isinstance(device, int) for device in value):
        raise ValueError("no proper world")
    return list(value)


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

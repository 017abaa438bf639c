"""Networks between hosts that the doctor has measured, kept for later plans beside other rates.

    bigft doctor --hostfile hosts --save_network--> networks.json --find_network--> bigft plan

A plan takes what was measured last by the way that its ranks would use: gloo on CPUs, NCCL on GPUs.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bigft.planner.known import find_cache, write_cache
from bigft.planner.links import GLOO, NCCL
from bigft.planner.machine import Hop, Rate

logger = logging.getLogger(__name__)

_FORMAT = 1
_MOST = 32
"""Groups of hosts that are remembered."""


@dataclass(frozen=True)
class Network:
    """What sums over several hosts have shown."""

    hosts: tuple[str, ...]
    ranks_per_host: int
    backend: str
    """`gloo` or `nccl`."""

    interface: str
    """Of the first host; empty: whichever the system chose."""

    bytes_per_second: float
    """Out of each host, and into it."""

    small_sum_seconds: float
    """Of one number over all ranks."""

    when: str
    """Date and time, UTC."""

    def describe(self) -> str:
        """Say when, where and how it was measured."""
        names = ", ".join(self.hosts[:3]) + (", ..." if len(self.hosts) > 3 else "")
        over = f" over {self.interface}" if self.interface else ""
        return f"{self.when[:10]} between {names} ({self.backend}{over})"

    @property
    def rate(self) -> Rate:
        """Bytes per second between two hosts."""
        return Rate(self.bytes_per_second, "measured", self.describe())

    @property
    def hop(self) -> Hop:
        """Seconds from host to host: what hops inside hosts leave of a small sum's time."""
        ways = NCCL if self.backend == "nccl" else GLOO
        way = min((way for way in ways if not way.is_tree), key=lambda way: way.between)
        count = len(self.hosts)
        inside = 2 * count * (self.ranks_per_host - 1) * way.inside
        left = self.small_sum_seconds - way.start - inside
        # Nothing is nearer than two ranks of one host.
        return Hop(max(left / (2 * (count - 1)), way.inside), self.describe())


def find_networks_file() -> Path:
    """Return the file where they are kept."""
    return find_cache().with_name("networks.json")


def find_network(backend: str, file: Path | None = None) -> Network | None:
    """Find what was measured last with a backend; None: nothing, or nothing readable."""
    rows = [row for row in _read(file or find_networks_file()) if row.backend == backend]
    return max(rows, key=lambda row: row.when, default=None)


def save_network(found: Network, file: Path | None = None) -> None:
    """Keep what was measured, in the place of what was known of these hosts.

    Raises:
        OSError: The file cannot be written.
    """
    file = file or find_networks_file()
    key = (set(found.hosts), found.backend)
    others = [row for row in _read(file) if (set(row.hosts), row.backend) != key]
    rows = sorted([*others, found], key=lambda row: row.when)[-_MOST:]
    write_cache(file, {"format": _FORMAT, "networks": [asdict(row) for row in rows]})


def _read(file: Path) -> list[Network]:
    try:
        whole = json.loads(file.read_text())
        return [_to_network(row) for row in whole["networks"]] if whole["format"] == _FORMAT else []
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        logger.warning("%s cannot be read (%s): measured networks are left out", file, error)
        return []


def _to_network(row: Mapping[str, Any]) -> Network:
    found = Network(
        hosts=tuple(map(str, row["hosts"])),
        ranks_per_host=int(row["ranks_per_host"]),
        backend=str(row["backend"]),
        interface=str(row["interface"]),
        bytes_per_second=float(row["bytes_per_second"]),
        small_sum_seconds=float(row["small_sum_seconds"]),
        when=str(row["when"]),
    )
    is_sound = found.bytes_per_second > 0 and found.small_sum_seconds > 0
    if not is_sound or len(found.hosts) < 2 or found.ranks_per_host < 1:
        raise ValueError("a network that cannot be")
    return found

"""Which ranks share the storage of a run's folder; `recognise` finds it out."""

from dataclasses import dataclass
from pathlib import Path

from bigft.distributed.processes import name_host


@dataclass(frozen=True)
class Storages:
    """The storages under one path, and the ranks at each."""

    of_rank: tuple[int, ...]
    """Rank -> number of its storage; they are numbered in the order of their first ranks."""
    hosts: tuple[str, ...]
    """Rank -> name of its host."""

    @property
    def count(self) -> int:
        """How many there are."""
        return max(self.of_rank) + 1

    @property
    def leaders(self) -> tuple[int, ...]:
        """The first rank of each storage."""
        return tuple(self.of_rank.index(number) for number in range(self.count))

    def leads(self, rank: int) -> bool:
        """Whether a rank is the first one of its storage."""
        return rank in self.leaders

    def ranks_at(self, number: int) -> list[int]:
        """List the ranks of a storage."""
        return [rank for rank, mine in enumerate(self.of_rank) if mine == number]

    def share_of(self, rank: int) -> float:
        """Return which part of all ranks is at a rank's storage."""
        return self.of_rank.count(self.of_rank[rank]) / len(self.of_rank)

    def hosts_at(self, number: int) -> list[str]:
        """List the hosts of a storage, each once."""
        return list(dict.fromkeys(self.hosts[rank] for rank in self.ranks_at(number)))


def one_storage(world_size: int) -> Storages:
    """Describe a folder that all ranks share."""
    return Storages((0,) * world_size, (name_host(),) * world_size)


def describe_storages(storages: Storages, folder: Path) -> str | None:
    """Say where checkpoints lie; None: on one host, where it goes without saying."""
    hosts = list(dict.fromkeys(storages.hosts))
    if storages.count > 1:
        if storages.count == len(hosts):
            return f"checkpoints: each of {len(hosts)} hosts keeps its own ranks' files in {folder}"
        groups = "; ".join(", ".join(storages.hosts_at(n)) for n in range(storages.count))
        return (
            f"checkpoints: {storages.count} storages keep their ranks' files in {folder}: {groups}"
        )
    return f"checkpoints: {folder} is shared by all {len(hosts)} hosts" if len(hosts) > 1 else None

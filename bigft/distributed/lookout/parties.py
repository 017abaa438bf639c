"""Who takes part: hosts with their ranks, who speaks for them, and who acts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from bigft.distributed.lookout.standing import name_ranks


@dataclass(frozen=True)
class Host:
    """A host of the run."""

    name: str
    ranks: Mapping[int, int]
    """Rank -> process id, as that host counts."""

    @property
    def leader(self) -> int:
        """The rank that speaks for it."""
        return min(self.ranks)

    def __str__(self) -> str:
        """Name it with its ranks."""
        return f"host {self.name} ({name_ranks(self.ranks)})"


@dataclass(frozen=True)
class Door:
    """Where rank 0 listens."""

    addresses: tuple[str, ...]
    """By which others may reach it, the likeliest first."""
    port: int
    token: str
    """Of this run: who does not have it is not heard."""


class Ears(Protocol):
    """Who is told; called from the thread of a lookout."""

    def ended(self, code: int, text: str, *, at_once: bool, rank: int | None = None) -> None:
        """The run is over: leave with this code, and say the text unless it is empty.

        Args:
            code: Of this process, too.
            text: What has happened.
            at_once: Whether there is nothing to wait for; else the main thread has some seconds to
                leave by itself.
            rank: Whose end it is, if it is that of one.
        """

    def warned(self, text: str) -> None:
        """Something people should know."""

    def dump(self, line: str) -> None:
        """Have the ranks of this host write their stacks, after this line."""


class Lookout(Protocol):
    """This rank's part in watching the run."""

    def start(self) -> None:
        """Begin."""

    def part(self) -> None:
        """Let everybody end as they like from now on."""

    def dismiss(self, rank: int, code: int, *, at_once: bool) -> None:
        """Let other hosts know that a rank of this one ends, and how. From any thread."""

    def tell(self, rank: int, code: int, text: str, *, at_once: bool) -> bool:
        """Bring last words to rank 0; return whether it has heard them. From any thread."""

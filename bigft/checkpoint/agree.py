"""How the ranks of one checkpoint talk: rank 0 asks and decides, the others report and wait.

Messages on a board instead of collectives, so that a background thread can do it beside the
training, and so that a rank that never answers is named at a time limit.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bigft.errors import CheckpointError

_NAMED_PROBLEMS = 4


class Board(Protocol):
    """Messages among the ranks that work on one checkpoint."""

    def post(self, key: str, text: str) -> None:
        """Leave a message for all ranks."""

    def read(self, key: str, timeout_seconds: float) -> str | None:
        """Wait for a message and return it, or None at the time limit."""


@dataclass(frozen=True)
class Ranks:
    """The ranks that work on one checkpoint, seen from one of them."""

    rank: int
    world_size: int
    board: Board
    timeout_seconds: float
    prefix: str
    """Keeps the messages of this piece of work apart from others."""

    def tell(self, key: str, text: str) -> None:
        """Post a message."""
        self.board.post(f"{self.prefix}/{key}", text)

    def hear(self, key: str, patience: float = 1.0) -> str:
        """Wait for rank 0.

        Args:
            key: Of its message.
            patience: Multiple of the time limit to wait.

        Raises:
            CheckpointError: It did not post within the time; this rank has to say so itself.
        """
        limit = patience * self.timeout_seconds
        text = self.board.read(f"{self.prefix}/{key}", limit)
        if text is None:
            error = CheckpointError(f"rank 0 did not answer rank {self.rank} within {limit:g} s")
            error.is_local = True
            raise error
        return text

    def report(self, key: str, text: str) -> None:
        """Post what rank 0 collects."""
        self.tell(f"{key}-{self.rank}", text)

    def collect(self, key: str, ranks: Sequence[int] = ()) -> tuple[list[str], list[str]]:
        """Read the reports of other ranks on rank 0, waiting up to the time limit.

        Args:
            key: Of the reports.
            ranks: Whose; by default those of ranks 1, 2, ...

        Returns:
            The reports in rank order, and the problem to name if some are missing.
        """
        deadline = time.monotonic() + self.timeout_seconds
        reports, missing = [], []
        for rank in ranks or range(1, self.world_size):
            left = max(0.0, deadline - time.monotonic())
            text = self.board.read(f"{self.prefix}/{key}-{rank}", left)
            if text is None:
                missing.append(rank)
            else:
                reports.append(text)
        if not missing:
            return reports, []
        named = ("rank " if len(missing) == 1 else "ranks ") + ", ".join(map(str, missing))
        return reports, [f"{named} did not report within {self.timeout_seconds:g} s"]


def join_problems(problems: Sequence[str]) -> str:
    """Put the problems of several ranks into one line; beyond four they are only counted."""
    named = "; ".join(problems[:_NAMED_PROBLEMS])
    if len(problems) > _NAMED_PROBLEMS:
        named += f"; and {len(problems) - _NAMED_PROBLEMS} more"
    return named


def shared_error(text: str) -> CheckpointError:
    """Make an error that all ranks raise with the same words."""
    error = CheckpointError(text)
    error.is_shared = True
    return error

"""Whether a run that has ended is started again, when, and on which hosts."""

from collections.abc import Collection, Sequence

from bigft.launch.conduct import Ending
from bigft.launch.hostfile import Host

FUTILE_STARTS = 3
"""So many in a row without a new checkpoint: another one would end as they did."""

_AGAIN = frozenset({1, 6, 75})
"""Codes of crashes, and of ranks that somebody else than the launcher has asked to stop: a host is
going away. What the others say, the same command would meet again."""

_OF_CHECKPOINTS = frozenset({5})
"""A start that could save at first has met a full disk, and not a damaged checkpoint; and where
each host keeps its own files, those of a host that was left out are missing."""

_FIRST_DELAY_SECONDS = 2.0


class Restarts:
    """Counts the starts of a launch, and what they have brought."""

    def __init__(self, allowed: int, commits: int = 0) -> None:
        """Begin before the first start.

        Args:
            allowed: Restarts that the user grants.
            commits: Checkpoints that the run folder has had so far.
        """
        self._allowed = allowed
        self._commits = commits
        self.used = 0
        self.futile = 0
        """Starts in a row that have committed nothing."""

    def refuse(self, ending: Ending, commits: int, *, may_be_elsewhere: bool = False) -> str | None:
        """Say why a run is not started again; None: it is. Counts the start that has ended.

        Args:
            ending: Of that start.
            commits: Checkpoints that the run folder has had by now.
            may_be_elsewhere: A host was left out, and may have what the checkpoint lacks.
        """
        self.futile += 1
        has_committed = self.see(commits)
        is_granted = has_committed or may_be_elsewhere
        codes = _AGAIN | _OF_CHECKPOINTS if is_granted else _AGAIN
        if ending.stopped is not None or ending.code not in codes or self._allowed == 0:
            return ""
        if self.used >= self._allowed:
            return f"--max_restarts {self._allowed} are used up"
        if self.futile >= FUTILE_STARTS:
            return (
                f"{self.futile} starts in a row have ended before a new checkpoint was committed;"
                " lower --save_steps if they only need more time"
            )
        self.used += 1
        return None

    def see(self, commits: int) -> bool:
        """Take the checkpoints that there are by now, also from hosts that were lost for a while.

        Returns:
            Whether there are more than before.
        """
        has_committed = commits > self._commits
        if has_committed:
            self.futile, self._commits = 0, commits
        return has_committed

    @property
    def delay_seconds(self) -> float:
        """How long to wait before the next start: longer, the less the last ones have brought."""
        return _FIRST_DELAY_SECONDS * 4.0**self.futile


def choose_for_restart(
    hosts: Sequence[Host], there: Collection[str], least: int, global_batch: int | None
) -> list[Host] | None:
    """Choose the hosts to go on with: all that are there, as far as they can share the batch.

    Args:
        hosts: Of the launch, in the order of their ranks.
        there: Those that answer.
        least: Hosts that there must be.
        global_batch: Sequences per step, which stay as they are; None: nobody knows.

    Returns:
        None while there are too few.
    """
    chosen = [host for host in hosts if host.name in there]
    while len(chosen) >= least:
        ranks = sum(host.slots for host in chosen)
        if len(chosen) == len(hosts) or not global_batch or global_batch % ranks == 0:
            return chosen
        chosen.pop()
    return None

"""Where a launch of a selftest is, from what its rank 0 says, and when that takes too long."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from bigft.errors import LaunchError
from bigft.selftest.report import AGREES, FAILED, Outcome
from bigft.units import format_seconds

BUILD_SECONDS = 1800.0
"""Operators take a minute or two each, once."""


class Progress:
    """What has ended, what runs, and since when."""

    def __init__(
        self,
        rows: Sequence[str],
        timeout: float,
        say: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with the start of the ranks.

        Args:
            rows: Names of what the launch is to try, in order.
            timeout: Seconds for one run, and for the start.
            say: Tells the person.
            clock: Seconds.
        """
        self._rows = rows
        self._timeout = timeout
        self._say = say
        self._clock = clock
        self._is_ready = False
        self._begin("the start of the ranks", timeout)
        self.outcomes: list[Outcome] = []

    def take(self, event: dict[str, Any]) -> None:
        """Take what rank 0 has said."""
        kind = event["event"]
        if kind == "building":
            names = ", ".join(event["operators"])
            self._say(f"building {names}: some minutes the first time, then from the cache")
            self._begin(f"the build of {names}", BUILD_SECONDS)
        elif kind == "ready":
            self._is_ready = True
            self._begin("the reference in plain torch", self._timeout)
        elif kind == "begins":
            self._begin(f"the run {event['row']}", self._timeout)
        else:
            self._finish(Outcome(**{k: v for k, v in event.items() if k != "event"}))

    def check(self) -> None:
        """Notice what hangs.

        Raises:
            LaunchError: Nothing has ended for too long.
        """
        if self._clock() - self._since > self._limit:
            raise LaunchError(
                f"{self._what} has not ended after {format_seconds(self._limit)}, and was ended;"
                " a rank hangs or the machine is too busy. `bigft doctor` checks the connection"
                " between ranks; --timeout gives more time"
            )

    def end(self, code: int, words: str) -> None:
        """The ranks have ended; if a run was not through, it has failed.

        Args:
            code: Exit code of the launcher.
            words: Their last ones.

        Raises:
            LaunchError: No run had begun.
        """
        if len(self.outcomes) == len(self._rows):
            return
        if not self._is_ready:
            raise LaunchError(f"the ranks could not start (exit code {code}): {words}")
        row = self._rows[len(self.outcomes)]
        self._finish(Outcome(row, FAILED, [f"ended with exit code {code}: {words}"]))

    def _begin(self, what: str, limit: float) -> None:
        self._what, self._limit, self._since = what, limit, self._clock()

    def _finish(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        place = f"{len(self.outcomes)} of {len(self._rows)}"
        self._say(f"{place}: {outcome.row} {outcome.verdict}")
        if outcome.verdict != AGREES:
            for problem in outcome.problems:
                self._say(f"  {problem}")
        self._begin("the next run", self._timeout)

"""How long a run may be silent or stand still before it is ended with words."""

from dataclasses import dataclass

TICK_SECONDS = 1.0
"""Between two messages of a host."""

STACKS_SECONDS = 2.0
"""For ranks that are to write their stacks, before they leave."""

STEPS = 5
"""So many usual steps may pass without a move, if that is longer than the limit."""


@dataclass(frozen=True)
class Limits:
    """In seconds; 0 switches a limit off. `monitor/section.py` says what each one means."""

    startup: float = 1800.0
    steady: float = 55.0
    slow: float = 1800.0
    lost: float = 30.0
    port: int = 0
    """Of rank 0's host, for the other hosts; 0: any free one."""

    @property
    def warned(self) -> float:
        """After so much silence the log has a line."""
        return self.lost / 2

    def silent(self, step_seconds: float | None) -> float:
        """How long a process may be silent whose host answers; 0: for ever.

        Longer than for a host: native code that keeps Python's lock makes no sound, either.
        """
        if not self.lost:
            return 0.0
        if step_seconds is None:
            return 4 * self.lost
        return max(self.steady, self.lost, STEPS * step_seconds)

    @property
    def longest(self) -> float:
        """What the time limit of collectives has to be longer than."""
        return max(self.startup, self.steady, self.slow, self.lost)

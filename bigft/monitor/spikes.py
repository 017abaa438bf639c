"""Values that stand out of their recent past."""

import math
from dataclasses import dataclass

WINDOW = 128
"""Steps that are looked back on."""

_WARM_UP = 64
"""Values that must have been seen before one is judged."""

_SIGMAS = 6.0


@dataclass(frozen=True)
class Spike:
    """A value above the mean of its past by more than six standard deviations."""

    value: float
    mean: float
    sigma: float


def judge(history: list[float], value: float) -> Spike | None:
    """Judge a value by the ones before it, and take it up into them in place.

    A spike is taken up as the largest value that would have passed: it must not hide the next
    one, and a level that has risen for good must become the new past after some steps.

    Args:
        history: The latest values, at most `WINDOW`.
        value: Finite.
    """
    spike = None
    if len(history) >= _WARM_UP:
        mean = math.fsum(history) / len(history)
        sigma = math.sqrt(math.fsum((x - mean) ** 2 for x in history) / len(history))
        limit = mean + _SIGMAS * sigma
        if value > limit:
            spike, value = Spike(value, mean, sigma), limit
    history.append(value)
    del history[:-WINDOW]
    return spike

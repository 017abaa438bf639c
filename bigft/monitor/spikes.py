"""Values that stand out of their recent past."""

import math
from dataclasses import dataclass
from statistics import median

WINDOW = 128
"""Steps that are looked back on."""

_WARM_UP = 64
"""Values that must have been seen before one is judged."""

_SIGMAS = 6.0

_OUTLIER = 15.0
"""Values that are further above the median than this many median deviations do not count."""

_LEAST_SIGMA = 1e-3
"""Of the mean. What hardly moves at all would make an alarm of every rounding error."""


@dataclass(frozen=True)
class Spike:
    """A value above the mean of its past by more than six standard deviations."""

    value: float
    mean: float
    sigma: float


def judge(history: list[float], value: float) -> Spike | None:
    """Judge a value by the ones before it, and add it to them in place.

    Earlier spikes are left out of mean and deviation, so that one does not hide the next; but
    where most of the window is high, that is the new level.

    Args:
        history: The latest values, at most `WINDOW`.
        value: Finite.
    """
    spike = None
    if len(history) >= _WARM_UP:
        mean, sigma = _measure(history)
        if value > mean + _SIGMAS * sigma:
            spike = Spike(value, mean, sigma)
    history.append(value)
    del history[:-WINDOW]
    return spike


def _measure(history: list[float]) -> tuple[float, float]:
    """Mean and standard deviation of what is not a spike itself."""
    middle = median(history)
    limit = middle + _OUTLIER * median(abs(value - middle) for value in history)
    usual = [value for value in history if value <= limit]
    mean = math.fsum(usual) / len(usual)
    sigma = math.sqrt(math.fsum((value - mean) ** 2 for value in usual) / len(usual))
    return mean, max(sigma, _LEAST_SIGMA * abs(mean))

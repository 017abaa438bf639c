"""How a rate is measured: warmed up, for a limited time, with its spread."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

SECONDS = 2.0
"""That one measurement may take, warm-up included; the first call may take longer."""

_LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Reading:
    """A rate, and how far its rounds were apart."""

    per_second: float
    """The median round's."""

    spread: float
    """Difference of the fastest and the slowest quarter, as a share of the median."""


def measure_rate(
    action: Callable[[], object],
    amount: float,
    *,
    seconds: float = SECONDS,
    wait: Callable[[], object] = lambda: None,
) -> Reading:
    """Repeat an action and measure how much it does per second.

    Args:
        action: One round.
        amount: What a round does: bytes, FLOP, parameters.
        seconds: Limit of all rounds together; three are made in any case.
        wait: Returns when what was begun is done, on a device.
    """
    end = time.perf_counter() + seconds
    action()
    wait()
    rates: list[float] = []
    while len(rates) < _LEAST_ROUNDS or time.perf_counter() < end:
        started = time.perf_counter()
        action()
        wait()
        rates.append(amount / (time.perf_counter() - started))
    return summarize(rates)


def summarize(rates: list[float]) -> Reading:
    """Take the median of the rounds, and their spread."""
    median = statistics.median(rates)
    if len(rates) < 2:
        return Reading(median, 0.0)
    low, _, high = statistics.quantiles(rates, n=4, method="inclusive")
    return Reading(median, (high - low) / median)

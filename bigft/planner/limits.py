"""How far a plan can be stretched before something is full."""

from collections.abc import Callable
from dataclasses import replace

from bigft.planner.forecast import Forecast, forecast

_MOST = 1 << 20


def find_largest_micro_batch(plan: Forecast) -> int:
    """Find the most sequences per rank in one forward pass that fit; 0: not even one does."""
    return _find_largest(
        lambda count: forecast(replace(plan.job, micro_batch=count), plan.machine).fits, 1 << 14
    )


def find_largest_length(plan: Forecast) -> int:
    """Find the most tokens of a sequence that fit, whatever the model was made for."""
    return _find_largest(
        lambda count: forecast(replace(plan.job, length=count), plan.machine).fits, _MOST
    )


def _find_largest(fits: Callable[[int], bool], most: int) -> int:
    """Find the last number from 1 on for which something is true, which is false from then on."""
    if not fits(1):
        return 0
    low = 1
    while low < most and fits(min(2 * low, most)):
        low = min(2 * low, most)
    high = min(2 * low, most)
    # To two digits: a forecast knows no more.
    while high - low > max(1, low // 64):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low

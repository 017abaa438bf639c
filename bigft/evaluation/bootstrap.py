"""Whether one model is better than another, or the examples just fell so: paired bootstrap.

Koehn, "Statistical Significance Tests for Machine Translation Evaluation", EMNLP 2004.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bigft.evaluation.examples import Sums

RESAMPLES = 1000
SEED = 12345
_INTERVAL = (2.5, 97.5)

Join = Callable[[Sequence[float]], float]
"""From sums over examples to the metric."""


@dataclass(frozen=True)
class Difference:
    """A metric of two models on the same examples."""

    a: float
    b: float
    difference: float
    """b - a."""

    low: float
    high: float
    """95% of the resamples have a difference between the two."""

    share_b_larger: float
    """Share of the resamples in which b is larger than a; half of those in which they are equal."""

    examples: int


def divide(sums: Sequence[float]) -> float:
    """Compute a mean: a sum over a number of terms."""
    return sums[0] / sums[1]


def compare(a: Sums, b: Sums, join: Join = divide) -> Difference | None:
    """Compare two models on the examples that both were scored on.

    Each resample draws as many examples as there are, with replacement, and takes the same ones for
    both models: what is hard for both cancels out. The draws are the same each time.

    Args:
        a: Sums of each example.
        b: The same of the other model.
        join: Computes the metric.

    Returns:
        None where no example has both.
    """
    common = sorted(a.keys() & b.keys())
    if not common:
        return None
    rows_a, rows_b = (np.array([sums[key] for key in common]) for sums in (a, b))
    whole_a, whole_b = join(rows_a.sum(0).tolist()), join(rows_b.sum(0).tolist())
    found = resample(rows_a, rows_b, join)
    low, high = np.percentile(found, _INTERVAL).tolist()
    share = float((found > 0).mean() + (found == 0).mean() / 2)
    return Difference(whole_a, whole_b, whole_b - whole_a, low, high, share, len(common))


def resample(
    rows_a: npt.NDArray[np.float64], rows_b: npt.NDArray[np.float64], join: Join
) -> npt.NDArray[np.float64]:
    """Draw `RESAMPLES` differences b - a, `(RESAMPLES,)`.

    Args:
        rows_a: `(n, k)`, sums of each example.
        rows_b: `(n, k)`, of the same examples.
        join: From `(k,)` to the metric.
    """
    generator = np.random.default_rng(SEED)
    count = len(rows_a)
    differences = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        # How often each example is drawn, which takes less memory than the drawn rows.
        times = np.bincount(generator.integers(count, size=count), minlength=count)
        differences[number] = join((times @ rows_b).tolist()) - join((times @ rows_a).tolist())
    return differences


def has_same_terms(a: Sums, b: Sums) -> bool:
    """Whether the losses of two models are means over the same terms, example by example.

    They are not where tokenizers cut the texts differently.
    """
    return all(a[key][1] == b[key][1] for key in a.keys() & b.keys())


def show_differences(
    differences: Mapping[str, Difference], others: Mapping[str, tuple[float, float]]
) -> str:
    """Write a table for people.

    Args:
        differences: By the name of the metric.
        others: A and B of metrics without an interval.
    """
    width = max(map(len, [*differences, *others, ""])) + 2
    lines = [f"{'':<{width}}{'A':>12}{'B':>12}{'B - A':>12}   95% interval          examples"]
    for name, one in differences.items():
        interval = f"[{one.low:+.4f}, {one.high:+.4f}]"
        row = _show_row(name, width, one.a, one.b)
        lines.append(f"{row}   {interval:<20}{one.examples:>10,}")
    lines += [_show_row(name, width, *pair) for name, pair in others.items()]
    return "\n".join(lines)


def _show_row(name: str, width: int, a: float, b: float) -> str:
    return f"{name:<{width}}{a:>12.4f}{b:>12.4f}{b - a:>+12.4f}"

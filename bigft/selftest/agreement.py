"""How far a run may be from the reference, and how far it is."""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from bigft.selftest.reference import Course
    from bigft.selftest.rows import Row


@dataclass(frozen=True)
class Tolerance:
    """Largest differences that count as agreement."""

    loss: float
    """Relative, of every step."""
    norm: float
    """Relative, of every step."""
    weights: float
    """Of the parameter that is worst: distance at the end, by how far the reference moved it."""


TOLERANCES = {
    # What the order of sums changes in fp32 is 1e-6 of a gradient at most.
    ("fp32", "adamw"): Tolerance(1e-5, 1e-5, 1e-4),
    # It tips the code of a moment here and there, which is then a hundredth off.
    ("fp32", "adamw_8bit"): Tolerance(2e-5, 5e-4, 5e-3),
    # A bf16 number is rounded by up to 4e-3 of itself, gradients of many in sequence.
    ("bf16", "adamw"): Tolerance(1e-3, 2e-2, 5e-2),
    ("bf16", "adamw_8bit"): Tolerance(1e-3, 2e-2, 5e-2),
}
"""Four times and more what has been measured; docs/guides/selftest.md has the numbers."""


@dataclass(frozen=True)
class Difference:
    """What was measured."""

    loss: float
    norm: float
    rate: float
    weights: float
    worst: str
    """The parameter that is worst."""

    def to_dict(self) -> dict[str, Any]:
        """Return what `Difference(**...)` takes."""
        return asdict(self)


def measure(run: "Course", reference: "Course", start: "dict[str, Tensor]") -> Difference:
    """Compare a run with the reference.

    Args:
        run: What bigft did.
        reference: What plain torch did.
        start: Weights that both began with.
    """
    distances = {
        name: float((run.weights[name].float() - wanted).norm())
        / max(float((wanted - start[name]).norm()), 1e-30)
        if name in run.weights
        else math.inf
        for name, wanted in reference.weights.items()
    }
    # Not a number is worse than anything.
    worst = max(distances, key=lambda name: _order(distances[name]))
    return Difference(
        _compare(run.losses, reference.losses),
        _compare(run.norms, reference.norms),
        _compare(run.rates, reference.rates),
        distances[worst],
        worst,
    )


def _compare(values: list[float], wanted: list[float]) -> float:
    """Return the largest relative difference; infinite for another number of steps."""
    if len(values) != len(wanted):
        return math.inf
    pairs = zip(values, wanted, strict=True)
    return max((_order(abs(v - w) / abs(w)) for v, w in pairs), default=math.inf)


def _order(value: float) -> float:
    return math.inf if math.isnan(value) else value


def find_disagreements(found: Difference, row: "Row") -> list[str]:
    """Say in words what is further away than it may be."""
    may = TOLERANCES[row.precision, row.optim]
    problems = []
    if not found.rate <= 1e-6:
        problems.append(f"learning rates differ by {found.rate:.1e}")
    if not found.loss <= may.loss:
        problems.append(f"losses differ by {found.loss:.1e}, more than {may.loss:.0e}")
    if not found.norm <= may.norm:
        problems.append(f"gradient norms differ by {found.norm:.1e}, more than {may.norm:.0e}")
    if not found.weights <= may.weights:
        problems.append(
            f"weights ({found.worst}) differ by {found.weights:.1e} of their way, more than"
            f" {may.weights:.0e}"
        )
    return problems

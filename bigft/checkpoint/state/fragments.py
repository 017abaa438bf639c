"""Which pieces of which parameters lie where in a flat vector of the optimizer.

ZeRO gives an optimizer flat vectors in which each rank holds its pieces of many parameters, one
after the other, with padding between them. A checkpoint keeps the pieces by name and place in their
parameter instead, so that any other division of the same parameters can be put together from them.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Fragment:
    """A run of consecutive elements of one flattened parameter."""

    parameter: str
    start: int
    """Its first element in the flattened parameter."""
    numel: int
    offset: int
    """Its first element in the flat vector."""

    @property
    def place(self) -> slice:
        """Where it lies in the flat vector."""
        return slice(self.offset, self.offset + self.numel)


@dataclass(frozen=True)
class Flat:
    """A flat fp32 vector, `(N,)`, that the optimizer updates as one tensor."""

    tensor: Tensor
    """The key of the optimizer's state; its memory may be absent while it is swapped out."""
    numel: int
    fragments: tuple[Fragment, ...] = field(default=())

    def describe(self) -> list[Any]:
        """Return the layout as plain values, for a file's header."""
        return [self.numel, [[f.parameter, f.start, f.numel, f.offset] for f in self.fragments]]


def cut_evenly(name: str, total: int, size: int, rank: int, offset: int) -> Fragment | None:
    """Find a rank's piece of a parameter that is cut into pieces of `size` elements.

    Returns:
        The piece without the padding behind the parameter's end; None where it is all padding.
    """
    start = rank * size
    numel = min(size, total - start)
    return Fragment(name, start, numel, offset) if numel > 0 else None

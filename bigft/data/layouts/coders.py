"""Labels as the integers that stand behind a text in its row, and back."""

import json
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bigft.config.hints import suggest
from bigft.data.example import Label

Numbers = npt.NDArray[np.int32]
_SHOWN = 10


class Coder(Protocol):
    """One way to write a label as `size` integers of 32 bits."""

    size: int
    is_float: bool
    """Whether the integers are the bits of fp32 numbers."""

    def describe(self) -> str:
        """Say all that the integers depend on."""

    def encode(self, label: Label | list[Label]) -> Numbers:
        """Write a label, `(size,)`; raise ValueError with the reason if it is none of these."""

    def decode(self, numbers: Numbers) -> str:
        """Write it as people read it."""


class OneClass:
    """The number of a class."""

    size = 1
    is_float = False

    def __init__(self, names: Sequence[str]) -> None:
        """Take the names of the classes, in the order of their numbers."""
        self._names = list(names)
        self._numbers = {name: number for number, name in enumerate(names)}

    def describe(self) -> str:
        """List the classes."""
        return json.dumps(["one", self._names])

    def encode(self, label: Label | list[Label]) -> Numbers:
        """Look the class up."""
        if isinstance(label, list):
            raise ValueError("`label` is a list, but the labels of other rows are single ones")
        return np.array([find_class(label, self._numbers)], dtype=np.int32)

    def decode(self, numbers: Numbers) -> str:
        """Name the class."""
        return self._names[int(numbers[0])]


class ManyClasses:
    """0 or 1 for each class."""

    is_float = False

    def __init__(self, names: Sequence[str]) -> None:
        """Take the names of the classes, in the order of their numbers."""
        self._names = list(names)
        self._numbers = {name: number for number, name in enumerate(names)}
        self.size = len(self._names)

    def describe(self) -> str:
        """List the classes."""
        return json.dumps(["many", self._names])

    def encode(self, label: Label | list[Label]) -> Numbers:
        """Look up each class; a single label is a list of one."""
        row = np.zeros(self.size, dtype=np.int32)
        for one in label if isinstance(label, list) else [label]:
            row[find_class(one, self._numbers)] = 1
        return row

    def decode(self, numbers: Numbers) -> str:
        """Name the classes."""
        named = [name for name, is_one in zip(self._names, numbers, strict=True) if is_one]
        return ", ".join(named) or "none"


class Values:
    """Numbers to be predicted."""

    is_float = True

    def __init__(self, size: int) -> None:
        """Take how many there are in each row."""
        self.size = size

    def describe(self) -> str:
        """Say how many there are."""
        return json.dumps(["values", self.size])

    def encode(self, label: Label | list[Label]) -> Numbers:
        """Write numbers as fp32."""
        values = label if isinstance(label, list) else [label]
        if len(values) != self.size:
            raise ValueError(
                f"`label` has {len(values)} numbers, that of the first row {self.size}"
            )
        try:
            numbers = np.array([float(value) for value in values], dtype=np.float32)
        except ValueError:
            raise ValueError(
                f"`label` has to be a number for this task, not {label!r:.60}"
            ) from None
        if not np.isfinite(numbers).all():
            raise ValueError(f"`label` has to be a finite 32-bit number, not {label!r:.60}")
        return numbers.view(np.int32)

    def decode(self, numbers: Numbers) -> str:
        """Write them."""
        return ", ".join(f"{value:.6g}" for value in numbers.view(np.float32))


def name_class(label: Label) -> str:
    """Return the name of the class that a label means: 1, 1.0 and "1" are one class."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return str(label).strip()


def find_class(label: Label, numbers: dict[str, int]) -> int:
    """Look the number of a class up.

    Raises:
        ValueError: There is no such class.
    """
    name = name_class(label)
    if name in numbers:
        return numbers[name]
    known = list(numbers)
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    raise ValueError(
        f"`label` {name!r:.60} is none of the {len(known)} classes"
        f" ({', '.join(known[:_SHOWN])}{more}){suggest(name, known)}"
    )

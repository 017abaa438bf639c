"""What a format is: columns that together make an example, and a function that reads them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from bigft.data.example import Example

SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
TOOL_COLUMNS = ("tools", "functions")


@dataclass(frozen=True)
class Shape:
    """Columns that together make an example."""

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()
    """Read where they are there."""

    def __str__(self) -> str:
        """Write the needed columns as messages show them."""
        return " + ".join(f"`{name}`" for name in self.needed)


@dataclass(frozen=True)
class Reading:
    """One way to read a row: a format's name and the columns it would take."""

    name: str
    shape: Shape


class Format(Protocol):
    """What a module in this folder offers."""

    NAME: str
    SHAPES: tuple[Shape, ...]

    def fits(self, record: Mapping[str, Any], shape: Shape) -> bool:
        """Whether the values of the needed columns are of the kind that this format has."""

    def read(self, record: Mapping[str, Any], shape: Shape) -> Example:
        """Turn one record into an example; raise ValueError with the reason if it is bad."""

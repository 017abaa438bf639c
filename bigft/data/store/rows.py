"""The rows of one or several stores, numbered through."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bigft.data.store.store import TokenStore
from bigft.data.tokens.tokenize import Row

Numbers = npt.NDArray[np.int64]


class Rows:
    """The parts of a setting like `a.jsonl:3,b.jsonl:1` as one table of rows."""

    def __init__(self, stores: Sequence[TokenStore], names: Sequence[str] = ()) -> None:
        """Number the rows of the stores through; no token is read.

        Args:
            stores: One per part.
            names: Of the parts, for error messages; absent: their numbers, from 1.
        """
        self.stores = tuple(stores)
        self.names = tuple(names) or tuple(str(n) for n in range(1, len(self.stores) + 1))
        self._starts = np.cumsum([0, *(len(store) for store in stores)])
        self.lengths = _join([store.lengths for store in stores])
        """`(rows,)`, tokens per row."""
        self.supervised_counts = _join([store.supervised_counts for store in stores])
        """`(rows,)`, tokens per row that count in the loss."""
        self.digests = _join([store.digests for store in stores])
        """`(rows,)`, see `bigft.data.example.compute_digest`."""
        self.pieces = _join([store.pieces for store in stores])
        """`(rows,)`, number of the piece of its example, 0 for the first."""

    def __len__(self) -> int:
        """Count the rows."""
        return int(self._starts[-1])

    def load_signatures(self) -> npt.NDArray[np.uint32]:
        """Map or load the MinHash signatures, `(rows, 64)`."""
        found: npt.NDArray[np.uint32] = _join([store.signatures for store in self.stores])
        return found

    def find_part(self, numbers: Numbers) -> Numbers:
        """Find which part each row comes from."""
        return np.searchsorted(self._starts, numbers, side="right") - 1

    def load_origins(self, numbers: Numbers) -> list[str]:
        """Say where the raw rows of some rows stand, in the given order; for messages."""
        part = self.find_part(numbers)
        found = {
            int(store): iter(
                self.stores[store].load_origins(
                    (numbers[part == store] - self._starts[store]).tolist()
                )
            )
            for store in np.unique(part)
        }
        return [next(found[int(store)]) for store in part]

    def load_row(self, number: int, draw: Sequence[int] = ()) -> Row:
        """Copy one row into memory.

        Args:
            number: Of the row.
            draw: With the number the seed of what is chosen at random of it.
        """
        part, place = self.find_place(number)
        row = self.stores[part].load_row(place)
        return replace(row, source=part, draw=(*draw, number), number=number)

    def find_place(self, number: int) -> tuple[int, int]:
        """Find which part a row comes from, and its number there."""
        part = int(self.find_part(np.asarray(number)))
        return part, number - int(self._starts[part])


def _join(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    # One store stays mapped, and is not read.
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

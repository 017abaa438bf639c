"""Which rows share a sequence."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bins:
    """Row numbers, sequence after sequence, in two flat arrays (millions of rows stay small)."""

    rows: Numbers
    """`(rows,)`."""

    starts: Numbers
    """`(sequences + 1,)`: where each sequence begins in `rows`."""

    def __len__(self) -> int:
        """Count the sequences."""
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> Numbers:
        """Give the row numbers of one sequence."""
        return self.rows[self.starts[number] : self.starts[number + 1]]

    def __iter__(self) -> Iterator[Numbers]:
        """Give the row numbers of every sequence."""
        return (self[number] for number in range(len(self)))

    def pick(self, rows: Numbers) -> "Bins":
        """Name the rows by `rows[number]` instead of `number`."""
        return Bins(rows[self.rows], self.starts)

    def take(self, numbers: Numbers) -> "Bins":
        """Give some sequences, in this order, one maybe several times."""
        lengths = np.diff(self.starts)[numbers]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        # Place by place: how far a row is from the first of its sequence, and where that is.
        within = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        return Bins(self.rows[np.repeat(self.starts[numbers], lengths) + within], starts)

    def sum(self, per_row: npt.NDArray[np.integer]) -> Numbers:
        """Sum a number per row over each sequence, `(sequences,)`."""
        if not len(self):
            return np.zeros(0, dtype=np.int64)
        return np.add.reduceat(per_row[self.rows].astype(np.int64, copy=False), self.starts[:-1])


def pack_best_fit(lengths: npt.NDArray[np.integer], max_length: int) -> Bins:
    """Put every row into one sequence of at most `max_length` tokens: best fit, longest first.

    Each row goes into the fullest sequence that still has room for it, else into a new one. Best
    fit decreasing needs at most 11/9 of the smallest possible number of sequences, plus one
    (Johnson 1973).

    Args:
        lengths: `(rows,)`, tokens per row, 1 to `max_length`.
        max_length: Tokens per sequence.

    Raises:
        ValueError: A row is longer than a sequence, or empty.
    """
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= max_length:
        raise ValueError(
            f"rows have {lengths.min()} to {lengths.max()} tokens, not 1..{max_length}"
        )
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    placed = np.empty(len(lengths), dtype=np.int64)
    with_room: list[list[int]] = [[] for _ in range(max_length + 1)]
    count = 0
    # Bit r of `rooms` is set while a sequence has room for exactly r more tokens. The lowest set
    # bit from the row's length on is the best fit: one pass over max_length / 64 machine words.
    rooms = 0
    for place, length in enumerate(lengths[order].tolist()):
        candidates = rooms >> length
        if candidates:
            room = length + (candidates & -candidates).bit_length() - 1
            number = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, number = max_length, count
            count += 1
        left = room - length
        with_room[left].append(number)
        rooms |= 1 << left
        placed[place] = number
    by_bin = np.argsort(placed, kind="stable")
    starts = np.searchsorted(placed[by_bin], np.arange(count + 1))
    return Bins(order[by_bin], starts.astype(np.int64))


def pack_none(lengths: npt.NDArray[np.integer]) -> Bins:
    """Give every row a sequence of its own."""
    return Bins(np.arange(len(lengths)), np.arange(len(lengths) + 1))


def compute_utilisation(lengths: npt.NDArray[np.integer], num_bins: int, max_length: int) -> float:
    """Compute the share of `num_bins` full sequences that is tokens and not padding."""
    return float(lengths.sum() / (num_bins * max_length)) if num_bins else 0.0

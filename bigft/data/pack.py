"""Which rows share a sequence."""

import numpy as np
import numpy.typing as npt

Bins = list[npt.NDArray[np.int64]]
"""Row numbers per sequence."""


def pack_best_fit(lengths: npt.NDArray[np.int64], max_length: int) -> Bins:
    """Put every row into one sequence of at most `max_length` tokens: best fit, longest first.

    Each row goes into the fullest sequence that still has room for it, else into a new one. Best
    fit decreasing needs at most 11/9 of the smallest possible number of sequences, plus one.

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
    bins: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(max_length + 1)]
    # Bit r of `rooms` is set while a sequence has room for exactly r more tokens. The lowest set
    # bit from the row's length on is the best fit: one pass over max_length / 64 machine words.
    rooms = 0
    for row in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[row])
        candidates = rooms >> length
        if candidates:
            room = length + (candidates & -candidates).bit_length() - 1
            number = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
            bins[number].append(row)
        else:
            room, number = max_length, len(bins)
            bins.append([row])
        left = room - length
        with_room[left].append(number)
        rooms |= 1 << left
    return [np.array(rows, dtype=np.int64) for rows in bins]


def pack_none(lengths: npt.NDArray[np.int64]) -> Bins:
    """Give every row a sequence of its own."""
    return list(np.arange(len(lengths), dtype=np.int64).reshape(-1, 1))


def compute_utilisation(lengths: npt.NDArray[np.int64], num_bins: int, max_length: int) -> float:
    """Compute the share of `num_bins` full sequences that is tokens and not padding."""
    return float(lengths.sum() / (num_bins * max_length)) if num_bins else 0.0

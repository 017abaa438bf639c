"""The order of the sequences of an epoch: a pure function of the seed and the epoch's number.

It knows nothing of ranks, workers or batch sizes, so that a run goes on exactly where it stopped
with any number of them.
"""

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]

# Padding is saved inside a micro-batch, and micro-batches are smaller than a block. Sorting only
# within a window keeps the order random as a whole.
_BLOCK = 64
_WINDOW = 64 * _BLOCK


def shuffle(count: int, *, seed: int, epoch: int) -> Numbers:
    """Shuffle `0..count - 1`."""
    return _generator(seed, epoch).permutation(count)


def shuffle_by_length(lengths: npt.NDArray[np.integer], *, seed: int, epoch: int) -> Numbers:
    """Shuffle so that neighbours have similar lengths.

    The sequences are shuffled, sorted by length within windows of 4,096, and cut into blocks of
    64 that are shuffled within their window. Each sequence appears once.

    Args:
        lengths: `(sequences,)`, in tokens.
        seed: Decides the order together with `epoch`.
        epoch: 0 is the first.
    """
    generator = _generator(seed, epoch)
    order = generator.permutation(len(lengths))
    windows = []
    for start in range(0, len(order), _WINDOW):
        window = order[start : start + _WINDOW]
        window = window[np.argsort(lengths[window], kind="stable")]
        cuts = np.arange(_BLOCK, len(window), _BLOCK)
        blocks = np.split(window, cuts)
        windows += [blocks[place] for place in generator.permutation(len(blocks))]
    return np.concatenate(windows) if windows else order


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, epoch]))

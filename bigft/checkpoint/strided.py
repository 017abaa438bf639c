"""Elements of a tensor that do not lie one after the other in its file, such as a transposed one.

Rare: the optimizer's groups are always flat, only frozen parameters and buffers can be strided.
"""

import os

import numpy as np
from numpy.typing import NDArray

from bigft.checkpoint.cast import CARRIERS, Raw
from bigft.errors import CheckpointError
from bigft.files.torch_file import ITEM_BYTES, TensorRef

# Elements looked up at once: their indices take 8 bytes each, several times over.
_PART = 1 << 17
# Elements nearer to each other than this are read together, with what lies between.
_GAP_BYTES = 4096
_MAX_RUN_BYTES = 4 << 20


def read_strided(ref: TensorRef, start: int, numel: int) -> Raw:
    """Read elements `start` to `start + numel` of a tensor in C order.

    Returns:
        `(numel,)` of the dtype's carrier.

    Raises:
        CheckpointError: The file ends before.

    Memory: the result and 16 MiB, whatever the tensor's size.
    """
    result = np.empty(numel, CARRIERS[ref.dtype])
    descriptor = os.open(ref.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for low in range(0, numel, _PART):
            high = min(low + _PART, numel)
            result[low:high] = _gather(descriptor, ref, start + low, start + high)
    finally:
        os.close(descriptor)
    return result


def _gather(descriptor: int, ref: TensorRef, start: int, stop: int) -> Raw:
    """Read a few elements through the runs of bytes in which they lie."""
    places = _find_places(ref, start, stop)
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    item_bytes = ITEM_BYTES[ref.dtype]
    found = np.empty(len(places), CARRIERS[ref.dtype])
    first = 0
    for last in [*_find_ends(ordered, item_bytes), len(ordered)]:
        begin, end = int(ordered[first]), int(ordered[last - 1]) + 1
        run = _read_run(descriptor, ref, begin, end).view(found.dtype)
        found[order[first:last]] = run[ordered[first:last] - begin]
        first = last
    return found


def _find_places(ref: TensorRef, start: int, stop: int) -> NDArray[np.int64]:
    """Return the storage's index of each element, `(stop - start,)`."""
    rest = np.arange(start, stop, dtype=np.int64)
    places = np.zeros(stop - start, np.int64)
    for size, stride in zip(reversed(ref.shape), reversed(ref.strides), strict=True):
        rest, index = np.divmod(rest, size)
        places += index * stride
    return places


def _find_ends(ordered: NDArray[np.int64], item_bytes: int) -> list[int]:
    """Cut sorted places into runs; returns where each but the last ends."""
    gaps = np.diff(ordered) * item_bytes > _GAP_BYTES
    # A run without a gap is long only if its elements are near each other: cut it by bytes.
    chunks = np.diff((ordered - ordered[0]) * item_bytes // _MAX_RUN_BYTES) > 0
    return [int(index) + 1 for index in np.flatnonzero(gaps | chunks)]


def _read_run(descriptor: int, ref: TensorRef, begin: int, end: int) -> Raw:
    item_bytes = ITEM_BYTES[ref.dtype]
    raw = np.empty((end - begin) * item_bytes, np.uint8)
    view, position = raw.data, ref.offset + begin * item_bytes
    while view:
        count = os.preadv(descriptor, [view], position)
        if not count:
            raise CheckpointError(f"{ref.path}: ends at byte {position:,}; it is cut off")
        view, position = view[count:], position + count
    return raw

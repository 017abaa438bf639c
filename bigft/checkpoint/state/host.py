"""Saved weights and moments, filled into a `HostAdamW`: codes as they are where that is exact."""

import numpy as np
import torch
from torch import Tensor

from bigft.checkpoint.state.collect import CODES, MASTER, PLAIN, REST, UPPER
from bigft.checkpoint.state.read import Piece, StateReader
from bigft.optim.code8 import BLOCK, signed_code, unsigned_code
from bigft.optim.host import FlatState, Kept, Region
from bigft.optim.reference import quantise, split

_CHUNK = 4 << 20
"""Elements converted at once; a multiple of a block."""


def fill_host(reader: StateReader, kept: FlatState) -> int:
    """Fill in everything that is kept of one flat vector.

    Codes of a block that one rank holds now and one rank held then are taken as they are. Blocks
    that are cut elsewhere now, and moments that were saved as fp32 numbers, are coded anew.

    Args:
        reader: Of an open checkpoint.
        kept: Weights and moments to fill.

    Returns:
        Steps that the optimizer has done.

    Raises:
        CheckpointError: Something is not in the checkpoint.

    Memory: 64 MiB beside the state.
    """
    for row in kept.rows:
        _fill_weights(reader, row, kept.rest_bits)
    kept.step = reader.find_step()
    if kept.step == 0:
        return 0
    for row in kept.rows:
        for number in (0, 1):
            if row.scales is None:
                name, start = row.region.parameter, row.region.start
                reader.fill(PLAIN[number], name, start, row.moments[number])
            else:
                _fill_codes(reader, number, row.region, row.moments[number], row.scales[number])
    return kept.step


def _fill_weights(reader: StateReader, row: Kept, rest_bits: int) -> None:
    weights, rest = row.weights, row.rest
    name, start = row.region.parameter, row.region.start
    if not rest_bits:
        reader.fill(MASTER, name, start, weights)
        return
    if reader.has(UPPER, name) and reader.find_rest_dtype(name) == rest.dtype:
        reader.fill(UPPER, name, start, weights)
        reader.fill(REST, name, start, rest)
        return
    for low in range(0, row.region.numel, _CHUNK):
        whole = torch.empty(min(_CHUNK, row.region.numel - low))
        reader.fill(MASTER, name, start + low, whole)
        upper, lower = split(whole.numpy(), rest_bits)
        weights[low : low + _CHUNK].view(torch.int16).copy_(torch.from_numpy(upper.view(np.int16)))
        rest[low : low + _CHUNK].copy_(torch.from_numpy(lower))


def _fill_codes(
    reader: StateReader, number: int, region: Region, codes: Tensor, scales: Tensor
) -> None:
    first = region.start // BLOCK
    is_filled = np.zeros(len(scales), bool)
    if not reader.has_vectors and reader.has(CODES[number], region.parameter):
        for piece in reader.list_pieces(CODES[number], region.parameter):
            low, high = _find_common_blocks(region, piece)
            if low >= high:
                continue
            here = _cut(low, high, region.start, region.numel)
            there = _cut(low, high, piece.start, piece.end - piece.start)
            codes[here], saved_scales = reader.read_codes(number, region.parameter, piece, there)
            at = piece.start // BLOCK
            scales[low - first : high - first] = saved_scales[low - at : high - at]
            is_filled[low - first : high - first] = True
    code = (signed_code(), unsigned_code())[number]
    for low, high in _find_gaps(is_filled):
        place = _cut(first + low, first + high, region.start, region.numel)
        whole = torch.empty(place.stop - place.start)
        start = region.start + place.start
        reader.fill(PLAIN[number], region.parameter, start, whole)
        found, found_scales = quantise(whole.numpy(), start % BLOCK, code)
        codes[place] = torch.from_numpy(found)
        scales[low:high] = torch.from_numpy(found_scales)


def _find_common_blocks(region: Region, piece: Piece) -> tuple[int, int]:
    """Find the blocks of which both hold the same elements."""
    end = region.start + region.numel
    low, high = max(region.start, piece.start) // BLOCK, -(-min(end, piece.end) // BLOCK)
    if max(low * BLOCK, region.start) != max(low * BLOCK, piece.start):
        low += 1
    if min(high * BLOCK, end) != min(high * BLOCK, piece.end):
        high -= 1
    return low, high


def _cut(low: int, high: int, start: int, numel: int) -> slice:
    """Find the elements of blocks `[low, high)` in a run that begins at `start`."""
    return slice(max(low * BLOCK - start, 0), min(high * BLOCK - start, numel))


def _find_gaps(is_filled: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> list[tuple[int, int]]:
    """Find the runs of blocks that are not filled, none longer than a chunk."""
    gaps = []
    edges = np.flatnonzero(np.diff(np.concatenate([[True], is_filled, [True]]).astype(np.int8)))
    for low, high in edges.reshape(-1, 2).tolist():
        for start in range(low, high, _CHUNK // BLOCK):
            gaps.append((start, min(start + _CHUNK // BLOCK, high)))
    return gaps

"""Which elements of which weights a rank steps: ZeRO's partitions, by arithmetic.

Stage 3 cuts every parameter into equal pieces. Stages 1 and 2 lay the parameters of a group one
after the other and cut the row into equal parts (DeepSpeed 0.19.8, `stage_1_and_2.py`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bigft.planner.architecture.weights import Weight

BLOCK = 256
"""Elements of a block of 8-bit moments."""

# `nccl_start_alignment_factor`: every rank's part starts at a multiple of so many elements.
_ALIGNMENT = 2


@dataclass(frozen=True)
class Piece:
    """A run of consecutive elements of one flattened weight."""

    weight: Weight
    start: int
    numel: int

    @property
    def num_blocks(self) -> int:
        """Blocks of 8-bit moments that it touches; they are counted from the weight's start."""
        return math.ceil((self.start % BLOCK + self.numel) / BLOCK)


def group_weights(weights: Sequence[Weight]) -> list[list[Weight]]:
    """Split as the optimizer's groups are: matrices, which are decayed, and the rest."""
    matrices = [weight for weight in weights if len(weight.shape) > 1]
    others = [weight for weight in weights if len(weight.shape) <= 1]
    return [group for group in (matrices, others) if group]


def cut_weights(weights: Sequence[Weight], stage: int, rank: int, ranks: int) -> Iterator[Piece]:
    """Yield what one rank steps.

    Args:
        weights: All that are trained, in the order of `named_parameters()`.
        stage: Of ZeRO; every rank of stage 0 steps everything.
        rank: Which one.
        ranks: How many there are.
    """
    if stage == 0:
        yield from (Piece(weight, 0, weight.numel) for weight in weights)
    elif stage == 3:
        for weight in weights:
            size = -(-weight.numel // ranks)
            numel = min(size, weight.numel - size * rank)
            if numel > 0:
                yield Piece(weight, size * rank, numel)
    else:
        for group in group_weights(weights):
            yield from _cut_row(group, rank, ranks)


def _cut_row(group: Sequence[Weight], rank: int, ranks: int) -> Iterator[Piece]:
    whole = sum(weight.numel for weight in group)
    grain = _ALIGNMENT * ranks
    size = -(-whole // grain) * grain // ranks
    first, end, offset = rank * size, (rank + 1) * size, 0
    for weight in group:
        start, stop = max(first, offset), min(end, offset + weight.numel)
        if start < stop:
            yield Piece(weight, start - offset, stop - start)
        offset += weight.numel


def count_sub_groups(weights: Sequence[Weight], ranks: int, size: int) -> list[int]:
    """Elements of each sub-group of one rank under stage 3.

    Whole pieces are put together until there are `size` elements or more.
    """
    found: list[int] = []
    for group in group_weights(weights):
        filled = size
        for weight in group:
            if filled >= size:
                found.append(0)
                filled = 0
            numel = -(-weight.numel // ranks)
            found[-1] += numel
            filled += numel
    return found

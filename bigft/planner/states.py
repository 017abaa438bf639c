"""Bytes of weights, gradients and optimizer states of one rank, exactly.

What each optimizer keeps per element of a rank's pieces (`bigft.optim.build`):

    HostAdamW          rest 2 or 1 beside bf16 weights; moments 2 codes and 2 scales per block of
                       256, or 8; those of norms and biases always 8
    DeepSpeedCPUAdam   master 4, fp32 gradient 4, moments 8, all in host memory
    AdamW, FusedAdam   master 4, moments 8
    HostAdamW8bit      master 4, moments 2 codes and 2 scales per block of a flat vector
"""

from collections.abc import Callable, Iterable, Sequence

from bigft.planner.job import Job
from bigft.planner.pieces import BLOCK, Piece, count_sub_groups, cut_weights

_SCALES = 8
"""Bytes of the two scales of a block."""

_COUNTED_RANKS = 16
"""Up to so many ranks each is counted; pieces of more differ by padding alone."""


def list_pieces(job: Job, rank: int = 0) -> list[Piece]:
    """What one rank steps; rank 0 has as much as any other."""
    return list(cut_weights(job.trained, job.strategy.stage, rank, job.ranks))


def count_elements(pieces: Iterable[Piece]) -> int:
    """Elements without padding."""
    return sum(piece.numel for piece in pieces)


def count_moment_bytes(job: Job, pieces: Sequence[Piece]) -> int:
    """Bytes of both moments and their scales."""
    if job.optimizer.moment_bits == 32:
        return 8 * count_elements(pieces)
    if job.optimizer.is_host:
        return sum(_count_host(job, piece) for piece in pieces)
    # bitsandbytes sees flat vectors: what is in them does not matter to it.
    numel = count_elements(pieces)
    flats = [numel]
    if job.strategy.stage == 3:
        flats = count_sub_groups(job.trained, job.ranks, job.strategy.sub_group_size)
    return sum(2 * flat + _SCALES * -(-flat // BLOCK) for flat in flats)


def _count_host(job: Job, piece: Piece) -> int:
    is_table = job.optimizer.fp32_embeddings and "embed" in piece.weight.name
    if len(piece.weight.shape) <= 1 or is_table:
        return 8 * piece.numel
    return 2 * piece.numel + _SCALES * piece.num_blocks


def count_master_bytes(job: Job, pieces: Sequence[Piece]) -> int:
    """Bytes beside the weights of the forward pass that make them numbers of 32 or 24 bits."""
    numel = count_elements(pieces)
    if not job.optimizer.is_host:
        return 4 * numel
    return numel * job.optimizer.rest_bits // 8 if job.strategy.is_split else 0


def count_state_bytes(job: Job) -> int:
    """Bytes of all moments and scales, of all ranks together."""
    return _sum_ranks(job, lambda pieces: count_moment_bytes(job, pieces))


def _sum_ranks(job: Job, count: Callable[[list[Piece]], int]) -> int:
    """Add up what each rank has; of many ranks the first stands for all, with its padding."""
    ranks = job.ranks if job.strategy.stage else 1
    if ranks > _COUNTED_RANKS:
        return ranks * count(list_pieces(job))
    return sum(count(list_pieces(job, rank)) for rank in range(ranks))


def count_checkpoint_bytes(job: Job) -> int:
    """Bytes of a checkpoint: fp32 weights, or bf16 ones and what is missing; moments; the rest.

    Headers and small files are within 1% of any model above a few million parameters.
    """
    own = job.strategy.weight_bytes if job.optimizer.is_host and job.strategy.is_split else 0
    if job.optimizer.is_host and not job.strategy.is_split:
        own = 4
    numel = sum(weight.numel for weight in job.trained)
    kept = _sum_ranks(
        job, lambda pieces: count_master_bytes(job, pieces) + count_moment_bytes(job, pieces)
    )
    untrained = job.architecture.parameters - numel
    shadow = 4 * numel if job.ema else 0
    return own * numel + kept + untrained * job.strategy.weight_bytes + shadow

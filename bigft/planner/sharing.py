"""How the ranks of a run share weights and gradients: a `Job` for `bigft.planner.traffic`."""

from collections.abc import Iterable

from bigft.planner.job import Job
from bigft.planner.traffic import Sharing

_GROUPS = 2
"""Of parameters, with and without weight decay: stages 1 and 2 gather each in one call."""


def describe_sharing(job: Job) -> Sharing:
    """Say who has what, and in how many calls it is sent."""
    s = job.strategy
    sizes = [weight.numel for weight in job.architecture.weights]
    trained = [weight.numel for weight in job.trained]
    # DeepSpeed asks for what is above the threshold.
    persistent = [size for size in sizes if s.stage == 3 and size <= s.persistence_threshold]
    large = [size for size in sizes if size > s.persistence_threshold]
    # Stage 1 has summed the gradients of all but the last micro-batch on each rank.
    sums_first = s.stage < 2 and (job.accumulation > 1 or s.stage == 0)
    return Sharing(
        stage=s.stage,
        weights=sum(sizes),
        trained=sum(trained),
        weight_bytes=s.weight_bytes,
        gradient_bytes=s.sent_bytes,
        persistent=sum(persistent),
        kept=count_kept(job),
        reduction=s.reduction,
        group=min(s.group, job.ranks),
        quantizes_weights=s.quantizes_weights,
        quantizes_gradients=s.quantizes_gradients,
        gathers=count_gathers(large, s.prefetch_bucket),
        small_gathers=len(persistent) if s.stage == 3 else _GROUPS,
        reductions=1 if sums_first else count_buckets(trained, s.reduce_bucket),
    )


def count_kept(job: Job) -> int:
    """Count the elements that stage 3 does not gather again for the backward pass.

    A layer is kept where it is used again within `stage3_max_reuse_distance` elements. All that
    comes after it lies between, once forward and once backward, and once more where the forward
    pass is computed again. The head comes last, and is always still there.

    DeepSpeed also asks for weights ahead, at every module and so about twice as fast as they are
    used: from the middle of the forward pass on for the backward pass, which keeps what is there.
    A model with twice `stage3_max_live_parameters` stops it before. How far it is ahead depends on
    the kind of model; what real runs gathered was within a tenth of this.
    """
    s = job.strategy
    if s.stage != 3:
        return 0
    whole = sum(
        one.numel for one in job.architecture.weights if one.numel > s.persistence_threshold
    )
    passes = 2 if job.checkpointing == "none" else 3
    layers = sum(block.numel for block in job.architecture.blocks)
    head = 0
    if job.is_per_token and not job.architecture.is_tied:
        head = min(job.architecture.hidden * job.architecture.head_outputs, whole)
    room = max(0, s.max_reuse - 2 * head)
    if room >= passes * layers:
        return whole
    ahead = whole // 2 if s.max_live >= whole // 2 else 0
    return min(whole, max(head + room // passes, ahead))


def count_gathers(sizes: Iterable[int], bucket: int) -> int:
    """Count the calls that gather these weights: each asks for a bucket at least."""
    calls, filled = 0, 0
    for size in sizes:
        if filled == 0:
            calls += 1
        filled += size
        if filled >= bucket:
            filled = 0
    return calls


def count_buckets(sizes: Iterable[int], bucket: int) -> int:
    """Count the calls that sum these gradients: none of several is larger than a bucket."""
    calls, filled = 0, 0
    for size in sizes:
        if calls == 0 or filled + size > bucket:
            calls, filled = calls + 1, 0
        filled += size
    return calls

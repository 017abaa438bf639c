"""Bytes of what the forward pass leaves behind and the backward pass has at hand, per rank.

Counted by what autograd keeps of transformers' modules (5.23), per token of a micro-batch, in
elements of the run's format unless it says fp32:

    norm          its input in fp32, what was normalised in the run's format
    attention     input; queries, keys and values before and after rotation; output; 1 fp32 per head
    MLP           input; gate, its activation, up, and their product, of the middle's width
    residual      one width each, shared with the norm that follows
"""

from bigft.planner.architecture.weights import Block
from bigft.planner.job import Job

_SQUARE = ("eager",)
"""Attention that writes down who sees whom."""

_CHUNK = {True: 16 << 20, False: 32 << 20}
"""Bytes of one fp32 chunk of the loss, on a CPU and elsewhere (`bigft.tasks.cross_entropy`)."""

_CHUNKS = 3
"""Chunks of the loss that exist at once."""


def count_kept(job: Job, block: Block) -> int:
    """Bytes that one layer keeps for its backward pass when nothing is computed again."""
    tokens, size = job.micro_batch * job.length, job.strategy.weight_bytes
    queries = block.heads * block.head_dim
    values = block.key_value_heads * block.head_dim
    norms = 2 * (4 + size) * block.hidden if size < 4 else 2 * 2 * size * block.hidden
    attention = size * (2 * block.hidden + 4 * queries + 5 * values) + 4 * block.heads
    if block.has_cross_attention:
        attention *= 2
    total = tokens * (norms + attention + _count_mlp(job, block))
    if job.attention in _SQUARE:
        # Scores in the run's format, and probabilities in fp32 and in the run's.
        seen = min(block.window or job.length, job.length)
        total += job.micro_batch * block.heads * job.length * seen * (2 * size + 4)
    return total


def _count_mlp(job: Job, block: Block) -> int:
    """Bytes per token."""
    size, middles = job.strategy.weight_bytes, 4 if block.is_gated else 2
    widths = block.inner
    if block.experts:
        # Tokens are copied to their experts and back.
        widths = block.inner * block.experts_per_token + block.shared_inner
        copies = 3 * block.hidden * block.experts_per_token
        return size * (middles * widths + copies) + 4 * 2 * block.experts
    return size * (middles * widths + 2 * block.hidden)


def count_saved(job: Job) -> int:
    """Bytes that all layers keep until the backward pass, wherever they wait for it."""
    tokens, size = job.micro_batch * job.length, job.strategy.weight_bytes
    if job.checkpointing == "none":
        return sum(count_kept(job, block) for block in job.architecture.blocks)
    return sum(tokens * size * block.hidden for block in job.architecture.blocks)


def count_recomputed(job: Job) -> int:
    """Bytes of the largest layer that is at hand in its backward pass, and of its gradients."""
    kept = max((count_kept(job, block) for block in job.architecture.blocks), default=0)
    gradients = max(
        (
            job.micro_batch
            * job.length
            * job.strategy.weight_bytes
            * (2 * block.hidden + 2 * block.inner * max(1, block.experts_per_token))
            for block in job.architecture.blocks
        ),
        default=0,
    )
    return gradients if job.checkpointing == "none" else kept + gradients


def count_mask(job: Job) -> int:
    """Bytes of who sees whom, where examples are packed without FlashAttention."""
    if job.packing == "none" or "flash" in job.attention or job.attention == "flex_attention":
        return 0
    # A condition, and what it is turned into.
    return job.micro_batch * job.length**2 * (1 + job.strategy.weight_bytes)


def count_logits(job: Job) -> int:
    """Bytes of the outputs of the head, which their gradient takes the place of."""
    rows = job.micro_batch
    if job.is_per_token:
        rows *= job.length
    return rows * job.architecture.head_outputs * job.strategy.weight_bytes


def count_loss(job: Job) -> int:
    """Bytes of what is computed of the logits in fp32, chunk by chunk."""
    rows = job.micro_batch * (job.length if job.is_per_token else 1)
    chunk = min(4 * rows * job.architecture.head_outputs, _CHUNK[job.is_on_cpu])
    return _CHUNKS * max(chunk, 4 * job.architecture.head_outputs)

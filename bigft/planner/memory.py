"""What one rank has in memory and on NVMe, item by item.

Held against DeepSpeed 0.19.8 and bigft's own stages (`bigft.engine.host_stage2`, `host_stage3`);
`tests/benchmarks/plan_memory.py` measures how well it holds.
"""

from collections.abc import Iterator

from bigft.planner import activations
from bigft.planner.items import Item, Phase, Where
from bigft.planner.job import Job
from bigft.planner.pieces import count_sub_groups
from bigft.planner.states import (
    count_checkpoint_bytes,
    count_elements,
    count_master_bytes,
    count_moment_bytes,
    list_pieces,
)

_INTERPRETER = {True: 540_000_000, False: 2_600_000_000}
"""Python, torch, DeepSpeed and transformers, on a CPU and with CUDA's libraries."""

CONTEXT = 600_000_000
"""What CUDA and NCCL keep on each device."""

_PIECE = 1 << 24
_SLOTS = 3
"""Of the optimizer on NVMe (`bigft.engine.host_swap`)."""

_EXPERT_KERNELS = 550_000_000
"""What oneDNN keeps for products of every number of tokens that experts on a CPU have seen."""

_BITSANDBYTES_STEP = 13
"""Bytes per element that bitsandbytes' step on a CPU has beside everything else (docs/log.md)."""

_PASSES: tuple[Phase, ...] = ("loss", "backward")


def list_items(job: Job) -> list[Item]:
    """List everything that takes room on one rank."""
    items = [
        Item("interpreter and libraries", "host", _INTERPRETER[job.is_on_cpu]),
        *_list_weights(job),
        *_list_optimizer(job),
        *_list_buffers(job),
        *_list_passes(job),
        *_list_building(job),
        *_list_copies(job),
    ]
    if not job.is_on_cpu:
        items.append(Item("CUDA and NCCL", "device", CONTEXT))
    return [item for item in items if item.num_bytes > 0]


def _device(job: Job) -> Where:
    return "host" if job.is_on_cpu else "device"


def count_own(job: Job) -> int:
    """Elements of the model that one rank has, padding included."""
    weights = job.architecture.weights
    if job.strategy.stage == 3:
        return sum(-(-weight.numel // job.ranks) for weight in weights)
    return sum(weight.numel for weight in weights)


def _list_weights(job: Job) -> Iterator[Item]:
    s, size = job.strategy, job.strategy.weight_bytes
    places: dict[str, Where] = {"none": _device(job), "cpu": "host", "nvme": "nvme"}
    where = places[s.parameter_device]
    is_pinned = where == "host" and s.pins_parameters and not job.is_on_cpu
    yield Item("weights", where, size * count_own(job), is_pinned=is_pinned)
    buffers = sum(buffer.numel for buffer in job.architecture.buffers)
    yield Item("buffers of the model", _device(job), 4 * buffers)
    if s.stage != 3:
        return
    if 1 < s.group < job.ranks:
        # Made anew in every step, where the weights are, by DeepSpeed's own `pin_memory`.
        shards = sum(-(-weight.numel // s.group) for weight in job.architecture.weights)
        yield Item("second shards of the weights", where, size * shards, is_pinned=is_pinned)
    if s.parameter_device == "nvme":
        buffers = s.parameter_buffers * s.parameter_buffer_size
        yield Item("buffers for weights on NVMe", "host", size * buffers, is_pinned=True)
    yield Item("gathered weights", _device(job), _count_gathered(job), _PASSES)


def _count_gathered(job: Job) -> int:
    """Bytes of whole weights that stage 3 has at hand at once."""
    s = job.strategy
    is_view = job.ranks == 1 and (job.is_on_cpu or s.parameter_device == "none")
    if is_view and s.parameter_device != "nvme":
        return 0
    parameters = job.architecture.parameters
    largest = max(weight.numel for weight in job.architecture.weights)
    return s.weight_bytes * min(parameters, max(s.max_live, largest) + s.prefetch_bucket)


def _list_optimizer(job: Job) -> Iterator[Item]:
    s, pieces = job.strategy, list_pieces(job)
    own = count_elements(pieces)
    moments, masters = count_moment_bytes(job, pieces), count_master_bytes(job, pieces)
    where: Where = _device(job) if s.optimizer_device == "none" else "host"
    is_pinned = where == "host" and s.pins_optimizer and not job.is_on_cpu
    if job.optimizer.is_host:
        yield from _list_host(job, own, moments, masters, is_pinned=is_pinned)
        return
    on_nvme = s.optimizer_device == "nvme"
    yield Item("master weights", "nvme" if on_nvme else where, masters, is_pinned=is_pinned)
    # Moments come with the first step.
    yield Item("moments", "nvme" if on_nvme else where, moments, ("loss", "backward", "step"))
    yield Item("gradients", where, s.accumulation_bytes * own)
    if s.stage == 3:
        groups = count_sub_groups(job.trained, job.ranks, s.sub_group_size)
        largest = max(groups, default=0)
    else:
        largest = own
    if job.optimizer.class_name == "HostAdamW8bit" and where == "host":
        extra = _BITSANDBYTES_STEP * largest
        yield Item("bitsandbytes' step on the CPU", "host", extra, ("step",))
    if s.optimizer_device == "none":
        # Put together in their own format first.
        copies = (4 + s.weight_bytes) * largest
        yield Item("fp32 gradients", where, copies, ("step",))
    elif not on_nvme:
        yield Item("fp32 gradients", where, 4 * own, is_pinned=is_pinned)
    if on_nvme:
        pool = s.optimizer_buffers * 4 * largest
        yield Item("buffers for states on NVMe", "host", pool, is_pinned=True)


def _list_host(
    job: Job, own: int, moments: int, masters: int, *, is_pinned: bool
) -> Iterator[Item]:
    s = job.strategy
    if s.parameter_device == "none" and not job.is_on_cpu:
        yield Item("host copy of the weights", "host", s.weight_bytes * own, is_pinned=is_pinned)
    has_sums = job.accumulation > 1
    size = s.accumulation_bytes if s.stage == 3 or has_sums else s.weight_bytes
    # Stages 1 and 2 write them for the first time in the first backward pass.
    yield Item("gradients", "host", size * own, is_pinned=is_pinned)
    if s.optimizer_device != "nvme":
        yield Item("master weights, their missing bits", "host", masters)
        yield Item("moments", "host", moments)
        return
    yield Item("master weights, their missing bits", "nvme", masters)
    yield Item("moments", "nvme", moments)
    per_element = (masters + moments) / max(own, 1)
    if s.parameter_device == "nvme":
        per_element += s.weight_bytes
    piece = min(_PIECE, own)
    yield Item(
        "buffers for states on NVMe", "host", int(_SLOTS * piece * per_element), is_pinned=is_pinned
    )


def _list_buffers(job: Job) -> Iterator[Item]:
    s = job.strategy
    if job.ranks == 1 or s.stage == 0:
        return
    copies = 2 if s.overlaps else 1
    bucket = min(s.reduce_bucket, sum(weight.numel for weight in job.trained))
    size = copies * s.weight_bytes * bucket
    yield Item("buckets for gradients", _device(job), size, ("backward",))
    if s.stage in (1, 2):
        gathered = min(s.allgather_bucket, job.architecture.parameters)
        yield Item("bucket for weights", _device(job), s.weight_bytes * gathered, ("step",))


def _list_passes(job: Job) -> Iterator[Item]:
    device = _device(job)
    saved_on: Where = "host" if job.checkpointing == "full_cpu_offload" else device
    yield Item("layer inputs", saved_on, activations.count_saved(job), _PASSES)
    yield Item("attention mask", device, activations.count_mask(job), _PASSES)
    # Logits have gone when the layers' backward passes begin.
    yield Item("logits", device, activations.count_logits(job), ("loss",))
    yield Item("loss, chunk by chunk", device, activations.count_loss(job), ("loss",))
    layer = activations.count_recomputed(job)
    yield Item("one layer's activations", device, layer, ("backward",))
    whole = _count_whole_gradients(job)
    yield Item("weight gradients at hand", device, whole, ("backward",))
    if job.is_on_cpu and any(block.experts for block in job.architecture.blocks):
        yield Item("kernels of experts", "host", _EXPERT_KERNELS, _PASSES)


def _count_whole_gradients(job: Job) -> int:
    """Bytes of gradients of whole weights before they are divided among ranks."""
    s, size = job.strategy, job.strategy.weight_bytes
    parameters = sum(weight.numel for weight in job.trained)
    if s.stage in (0, 1):
        # Every rank has all of them until the step.
        return size * parameters
    layer = max((block.numel for block in job.architecture.blocks), default=0)
    table = job.architecture.vocabulary * job.architecture.hidden
    copies = 2 if job.architecture.is_tied and job.is_per_token else 1
    return size * min(parameters, max(layer, copies * table))


def _list_building(job: Job) -> Iterator[Item]:
    """What is there twice for a while before the first step."""
    s, size = job.strategy, job.strategy.weight_bytes
    largest = max(weight.numel for weight in job.architecture.weights)
    if s.stage == 3:
        yield Item("a whole weight", _device(job), 2 * size * largest, ("build",))
    elif job.optimizer.is_host:
        yield Item("weights laid out anew", _device(job), size * count_own(job), ("build",))


def _list_copies(job: Job) -> Iterator[Item]:
    """What is beside the state that is trained."""
    pieces = list_pieces(job)
    if job.ema:
        yield Item("average of the weights", "host", 4 * count_elements(pieces))
    if job.saves_in_background and job.strategy.optimizer_device != "nvme":
        own = count_checkpoint_bytes(job) // (job.ranks if job.strategy.stage else 1)
        yield Item("copy that is being saved", "host", own, ("loss", "backward", "step"))

"""What one optimizer step computes and moves, by arithmetic: FLOP, and bytes over every link.

    Architecture + settings --build_work--> StepWork --time_step (bigft.planner.time)--> StepTime

Notation: N parameters, W ranks, n micro-batches per step.
"""

from dataclasses import dataclass
from typing import Literal

from bigft.planner.architecture.weights import Architecture, Block, Stack
from bigft.planner.machine import Machine
from bigft.planner.traffic import Flow, Sharing, list_flows

Place = Literal["none", "cpu", "nvme"]

_PASSES = 2
"""How often stage 3 gathers a layer per micro-batch: forward, and backward, where what is computed
again finds it still there."""


@dataclass(frozen=True)
class Update:
    """How parameters are updated."""

    name: str
    """The rule: `adamw`, `adamw_8bit`."""

    implementation: str
    """Class of the optimizer, such as `HostAdamW` or `DeepSpeedCPUAdam`."""

    state_bytes: float
    """Moments and their scales, per parameter."""

    master_bytes: float = 4.0
    """Of one parameter's weight, the model's own number in it where that is a part of it."""

    swap_bytes: float = 16.0
    """Per parameter, each way, where the optimizer is on NVMe."""


@dataclass(frozen=True)
class Layout:
    """Where a run has what, and how it is cut into steps."""

    stage: int
    ranks: int
    rows: int
    """Sequences of a micro-batch, per rank."""

    length: int
    """Tokens per sequence."""

    micro_batches: int = 1
    target_length: int = 0
    """Tokens that a decoder behind an encoder sees; 0: as many as `length`."""

    offload_optimizer: Place = "none"
    offload_param: Place = "none"
    checkpointing: str = "none"
    """`none`, `full` or `full_cpu_offload`."""

    attention: str = "sdpa"
    is_packed: bool = False
    """Whether a sequence holds several examples: then SDPA has a mask, and computes what the mask
    hides."""

    weight_bytes: int = 2
    gradient_bytes: int = 2
    head_share: float = 1.0
    """Of the tokens, that logits are computed for."""

    sharing: Sharing | None = None
    """What the ranks send one another; None: as the stage is written about, in one call each."""


@dataclass(frozen=True)
class StepWork:
    """One optimizer step; bytes are of the whole step."""

    tokens: int
    """Of a micro-batch, per rank, padding included."""

    micro_batches: int
    length: int
    layers: int
    ranks: int
    parameters: int
    flops: float
    """Of a micro-batch, per rank: forward, backward, and what is computed again."""

    stage: int
    optimizer: str
    implementation: str
    updates_on: Literal["host", "device"]
    updated: float
    """Parameters that all ranks of a host update together, or one device does."""

    update_bytes: float
    """Read and written for that, in the memory where it happens."""

    pcie_in: float = 0.0
    """Per rank, from host to device. Without a GPU: read and written by copies in host memory."""

    pcie_out: float = 0.0
    nvme_read: float = 0.0
    """By the optimizer, per host: its states, and weights that are on NVMe."""

    nvme_written: float = 0.0
    """Of its states, per host; the disk's wear together with `weights_written`."""

    weights_read: float = 0.0
    """Of weights on NVMe, per host, while the model computes."""

    weights_written: float = 0.0
    flows: tuple[Flow, ...] = ()
    """What the ranks send one another."""

    @property
    def sent(self) -> float:
        """Bytes per rank, to others in all collectives."""
        return sum(flow.sent for flow in self.flows)

    @property
    def leaves_host(self) -> float:
        """Bytes that leave each host, as rings send them."""
        return sum(flow.sent_between for flow in self.flows)

    @property
    def sent_between_hosts(self) -> float:
        """Bytes that have to leave each host: what comes in is passed on inside."""
        return sum(flow.least_between for flow in self.flows)

    @property
    def flops_per_token(self) -> float:
        """FLOP of one token."""
        return self.flops / self.tokens

    @property
    def tokens_per_step(self) -> int:
        """Of all ranks and micro-batches."""
        return self.tokens * self.micro_batches * self.ranks

    @property
    def disk_wear(self) -> float:
        """Bytes written to the disks of one host per step."""
        return self.nvme_written + self.weights_written


def build_work(
    architecture: Architecture, layout: Layout, update: Update, machine: Machine
) -> StepWork:
    """Count what a step computes and moves.

    Args:
        architecture: The model.
        layout: Stage, offload, micro-batches.
        update: The optimizer.
        machine: Its device and hosts; its rates are not looked at.
    """
    n, ranks = layout.micro_batches, layout.ranks
    local = min(machine.ranks_per_host, ranks)
    parameters = architecture.parameters
    own = parameters / ranks if layout.stage >= 1 else float(parameters)
    of_host = parameters * local / ranks
    on_host = layout.offload_optimizer != "none"
    is_gpu = machine.device == "cuda"
    moved_in, moved_out = _count_moved(architecture, layout, own, is_gpu=is_gpu)
    sharing = layout.sharing or _share_as_written(layout, parameters)
    on_nvme = layout.offload_optimizer == "nvme"
    weights_on_nvme = layout.offload_param == "nvme"
    weights = of_host * layout.weight_bytes if weights_on_nvme else 0.0
    # Without a GPU all ranks of a host update in the same memory, wherever it is said to be.
    updated = of_host if on_host or not is_gpu else own
    if not is_gpu and layout.stage == 0:
        updated = float(parameters * local)
    return StepWork(
        tokens=layout.rows * layout.length,
        micro_batches=n,
        length=layout.length,
        layers=sum(1 for _ in architecture.blocks),
        ranks=ranks,
        parameters=parameters,
        flops=count_flops(architecture, layout),
        stage=layout.stage,
        optimizer=update.name,
        implementation=update.implementation,
        updates_on="host" if on_host or not is_gpu else "device",
        updated=updated,
        update_bytes=updated * count_update_bytes(update, layout),
        pcie_in=moved_in,
        pcie_out=moved_out,
        # Weights pass through the optimizer as well.
        nvme_read=(of_host * update.swap_bytes if on_nvme else 0.0) + weights,
        nvme_written=of_host * update.swap_bytes if on_nvme else 0.0,
        weights_read=weights * _PASSES * n,
        weights_written=weights,
        flows=list_flows(sharing, n, ranks, local),
    )


def count_flops(architecture: Architecture, layout: Layout) -> float:
    """Count the FLOP of one micro-batch: 2 per weight and token forward, and twice that backward.

    A weight matrix takes 6 FLOP per token, or 8 where the forward pass is computed again; of
    several experts only those that a token goes to. Attention takes 12 per layer, head width and
    token that is seen. The head is counted once, for the tokens that have a target, and is never
    computed again; looking embeddings up is free.
    """
    target = layout.target_length or layout.length
    kinds = {stack.kind for stack in architecture.stacks}
    last = target if len(kinds) == 2 else layout.length
    passes = 3 if layout.checkpointing == "none" else 4
    flops = 0.0
    for stack in architecture.stacks:
        length = target if stack.kind == "decoder" and len(kinds) == 2 else layout.length
        for block in stack.blocks:
            seen = _count_seen(block, stack, length, layout)
            if block.has_cross_attention:
                seen += layout.length
            scores = 4 * block.heads * block.head_dim * seen
            flops += passes * layout.rows * length * (2 * count_active(block) + scores)
    is_per_token = architecture.head_outputs == architecture.vocabulary
    heads = layout.rows * (last * layout.head_share if is_per_token else 1)
    return flops + 3 * heads * 2 * architecture.hidden * architecture.head_outputs


def count_active(block: Block) -> int:
    """Count the matrix parameters of a layer that one token goes through."""
    matrices = sum(weight.numel for weight in block.weights if len(weight.shape) > 1)
    idle = max(0, block.experts - block.experts_per_token)
    return matrices - idle * (3 if block.is_gated else 2) * block.hidden * block.inner


def _count_seen(block: Block, stack: Stack, length: int, layout: Layout) -> float:
    """Count the tokens that one token's scores are computed for, on average."""
    is_causal = stack.kind == "decoder"
    name = layout.attention
    skips_hidden = name.startswith(("flash", "flex")) or (
        name.startswith("sdpa") and not layout.is_packed and block.window is None
    )
    if not skips_hidden:
        return float(length)
    reach = min(block.window or length, length)
    if is_causal:
        return reach - reach * reach / (2 * length)
    return min(length, 2.0 * reach) if block.window else float(length)


def count_update_bytes(update: Update, layout: Layout) -> float:
    """Count the bytes that updating one parameter reads and writes, its gradient's norm included.

    `HostAdamW` works in place, on the gradients as they are. Everything else has ZeRO around it,
    with fp32 copies: gradients are converted, measured and unscaled, weights are rounded.
    """
    low, gradient = layout.weight_bytes, layout.gradient_bytes
    if update.implementation == "HostAdamW":
        return 2 * (update.master_bytes + update.state_bytes) + 2 * gradient
    step = 2 * (4 + update.state_bytes) + 4
    return step + (gradient + 4) + 4 + 8 + (4 + low)


def _count_moved(
    architecture: Architecture, layout: Layout, own: float, *, is_gpu: bool
) -> tuple[float, float]:
    """Bytes per rank that go to the device and come from it.

    Weights of a host go in for every pass, gradients of a rank's share come out once per
    micro-batch, and go in again to be added to (DeepSpeed adds on the device); under stage 1 and 0
    they come out once. Weights that stay on the device are sent to it once they are updated.
    """
    n, low, gradient = layout.micro_batches, layout.weight_bytes, layout.gradient_bytes
    if not is_gpu:
        # Whole layers are put together in host memory, read and written.
        gathered = architecture.parameters * low * _PASSES * n * 2 if layout.stage == 3 else 0
        return float(gathered), float(architecture.parameters * gradient * n * 2)
    moved_in = moved_out = 0.0
    if layout.offload_param != "none":
        moved_in += own * low * _PASSES * n
    if layout.offload_optimizer != "none":
        rounds = n if layout.stage >= 2 else 1
        moved_out += own * gradient * rounds
        moved_in += own * gradient * (rounds - 1)
        if layout.offload_param == "none":
            moved_in += own * low
    if layout.checkpointing == "full_cpu_offload":
        kept = sum(block.hidden for block in architecture.blocks)
        activations = kept * low * layout.rows * layout.length * n
        moved_in += activations
        moved_out += activations
    return moved_in, moved_out


def _share_as_written(layout: Layout, parameters: int) -> Sharing:
    """Gradients to their owners, and weights gathered anew for every pass."""
    return Sharing(layout.stage, parameters, parameters, layout.weight_bytes, layout.gradient_bytes)

"""From work and rates to the seconds of an optimizer step: a roofline.

    GPU   | compute           |                          | optimizer       |
          | PCIe, in and out  | all at once: the longest | NVMe states     |  the longer
          | network           |                          | new weights in  |
          | NVMe weights      |
    CPU   compute, then copies, then network, then the optimizer: nothing hides

On a GPU what DeepSpeed moves beside the computing costs nothing until it takes longer. The
optimizer in host memory comes after the last gradient and before the next forward pass, so it is
never hidden; where its states are on NVMe they are read and written while it works. Ranks on CPUs
do all of it with the same cores, one after the other.
"""

from dataclasses import dataclass

from bigft.planner.links import time_flow
from bigft.planner.machine import Machine, SliceMeasurement
from bigft.planner.work import StepWork

_CORE_STEPS = {
    ("HostAdamW", "adamw_8bit"): 0.72e9,
    ("HostAdamW", "adamw"): 1.2e9,
    ("DeepSpeedCPUAdam", "adamw"): 0.76e9,
    ("HostAdamW8bit", "adamw_8bit"): 0.033e9,
}
"""Parameters per second and core where the arithmetic is the limit (docs/log.md, 2026-11-22)."""

_HOOKS = {
    "cuda": {0: 0.0002, 1: 0.0004, 2: 0.0004, 3: 0.004},
    "cpu": {0: 0.0002, 1: 0.0004, 2: 0.0004, 3: 0.03},
}
"""Seconds of Python and DeepSpeed per layer and micro-batch, forward and backward, by stage. On a
CPU, of stage 3: what runs took beyond stages 1 and 2 there (5M and 35M parameters, 4 and 9 layers:
0.028 and 0.029); those of GPUs are not measured, and hide behind the computing."""

_STEP_SECONDS = 0.02
"""Of Python per optimizer step: data, norms, logging."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step on one rank, by what they go to."""

    compute: float
    pcie: float
    """Between device and host, the busier direction; without a GPU, copies in host memory."""

    host_optimizer: float
    """Of the update, wherever it happens."""

    nvme: float
    network: float
    """Of all collectives, one after the other."""

    overhead: float
    total: float
    """Less than the sum where parts run at the same time."""

    tokens_per_second: float
    bottleneck: str
    """The part that takes longest."""

    sent_bytes: float
    """By one rank in all collectives of a step."""

    disk_bytes: float
    """Written to the disks of one host per step."""

    is_calibrated: bool
    """Whether layers of this model have been measured, and not just counted."""

    flows: tuple[float, ...] = ()
    """Of each kind of collective, as `StepWork.flows` lists them."""


def time_step(
    work: StepWork, machine: Machine, measured: SliceMeasurement | None = None
) -> StepTime:
    """Forecast the seconds of an optimizer step.

    Args:
        work: What it computes and moves.
        machine: How fast that is there.
        measured: Layers of this model on this machine, at the run's length and micro-batch.
    """
    rates, n = machine.rates, work.micro_batches
    if measured is None:
        compute = n * work.flops / rates.matrix.per_second
    else:
        compute = n * (work.layers * measured.seconds_per_layer + measured.seconds_outside)
    overhead = n * work.layers * _HOOKS[machine.device][work.stage] + _STEP_SECONDS
    flows = tuple(time_flow(flow, machine) for flow in work.flows)
    network = sum(flows)
    optimizer = _time_update(work, machine)
    states = (
        work.nvme_read / rates.disk_read.per_second
        + (work.nvme_written + work.weights_written) / rates.disk_write.per_second
    )
    weights = work.weights_read / rates.disk_read.per_second
    if machine.device == "cuda":
        pcie = max(work.pcie_in, work.pcie_out) / rates.pcie.per_second
        total = max(compute, overhead, pcie, network, weights) + max(optimizer, states)
    else:
        pcie = (work.pcie_in + work.pcie_out) / rates.pcie.per_second
        total = compute + overhead + pcie + network + weights + max(optimizer, states)
    parts = {
        "compute": compute,
        "pcie": pcie,
        "host_optimizer": optimizer,
        "nvme": states + weights,
        "network": network,
        "overhead": overhead,
    }
    return StepTime(
        **parts,
        total=total,
        tokens_per_second=work.tokens_per_step / total,
        bottleneck=max(parts, key=lambda name: parts[name]),
        sent_bytes=work.sent,
        disk_bytes=work.disk_wear,
        is_calibrated=measured is not None,
        flows=flows,
    )


def _time_update(work: StepWork, machine: Machine) -> float:
    """Seconds of updating parameters: as measured, or by bytes and by arithmetic."""
    if work.updates_on == "device":
        return work.update_bytes / machine.rates.device_memory.per_second
    if work.implementation == "HostAdamW" and work.optimizer in machine.rates.host_steps:
        return work.updated / machine.rates.host_steps[work.optimizer].per_second
    of_core = _CORE_STEPS.get((work.implementation, work.optimizer))
    arithmetic = 0.0 if of_core is None else work.updated / (of_core * machine.cores)
    return max(work.update_bytes / machine.rates.host_memory.per_second, arithmetic)

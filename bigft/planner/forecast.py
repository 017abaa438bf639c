"""A whole plan: bytes by place, seconds per step, and whether all of it is there."""

from dataclasses import dataclass

from bigft.planner.items import Item, Phase, find_peak
from bigft.planner.job import Job
from bigft.planner.machine import Machine, SliceMeasurement
from bigft.planner.memory import list_items
from bigft.planner.sharing import describe_sharing
from bigft.planner.states import (
    count_checkpoint_bytes,
    count_elements,
    count_master_bytes,
    count_moment_bytes,
    count_state_bytes,
    list_pieces,
)
from bigft.planner.time import StepTime, time_step
from bigft.planner.work import Layout, StepWork, Update, build_work

_SHARED_PER_RANK = 70 << 20
"""What DeepSpeed's collectives on CPUs map in /dev/shm (docs/log.md, 2026-11-21)."""

OUTPUT = "disk of the run folder"

TOLERANCE = 0.1
"""How far a forecast of memory may be off (`tests/benchmarks/plan_memory.py`)."""


@dataclass(frozen=True)
class Demand:
    """What is needed of one resource, and what there is."""

    what: str
    """As a person calls it."""

    needed: int
    available: int | None
    """None: unknown, or not limited."""

    is_memory: bool = True
    """Whether it is known now what there will be; disks are looked at again by those who write."""

    @property
    def is_met(self) -> bool:
        """Whether it fits, as far as is known."""
        return self.available is None or self.needed <= self.available

    @property
    def is_hopeless(self) -> bool:
        """Whether it does not fit either if the forecast is too high by its tolerance."""
        return self.available is not None and self.needed * (1 - TOLERANCE) > self.available


@dataclass(frozen=True)
class Forecast:
    """What a run will take."""

    job: Job
    machine: Machine
    items: tuple[Item, ...]
    """Of one rank."""

    device_bytes_per_rank: int
    device_phase: Phase
    host_bytes_per_host: int
    host_phase: Phase
    pinned_bytes_per_rank: int
    shared_memory_bytes_per_host: int
    nvme_bytes_per_host: int
    checkpoint_bytes: int
    output_bytes: int
    """Of all checkpoints that exist at once, and the exported model."""

    state_bytes: int
    """Of all moments, of all ranks."""

    work: StepWork
    time: StepTime

    @property
    def demands(self) -> tuple[Demand, ...]:
        """Everything that has to be there."""
        machine = self.machine
        found = [
            Demand("memory of a device", self.device_bytes_per_rank, machine.device_bytes or None),
            Demand("host memory", self.host_bytes_per_host, machine.host_bytes),
            # CUDA's pinned memory is not held to `ulimit -l`; the doctor looks at what is.
            Demand("pinned memory of a rank", self.pinned_bytes_per_rank, None),
            Demand("/dev/shm", self.shared_memory_bytes_per_host, machine.shared_memory_bytes),
            Demand("NVMe", self.nvme_bytes_per_host, machine.nvme_bytes, is_memory=False),
            Demand(OUTPUT, self.output_bytes, machine.disk_bytes, is_memory=False),
        ]
        return tuple(demand for demand in found if demand.needed)

    @property
    def fits(self) -> bool:
        """Whether everything that is known to be limited is enough."""
        return all(demand.is_met for demand in self.demands)

    @property
    def lacks(self) -> tuple[Demand, ...]:
        """Memory of which there is too little, as far as is known."""
        return tuple(one for one in self.demands if one.is_memory and not one.is_met)


def forecast(job: Job, machine: Machine, measured: SliceMeasurement | None = None) -> Forecast:
    """Plan a run.

    Args:
        job: What is trained, and how.
        machine: On what; `ranks_per_host` and `hosts` are taken from here.
        measured: Layers of this model on this machine.
    """
    items = tuple(list_items(job))
    work = _build_work(job, machine)
    device, device_phase = find_peak(items, "device")
    host, host_phase = find_peak(items, "host")
    nvme, _ = find_peak(items, "nvme")
    local = job.ranks_per_host
    checkpoint = count_checkpoint_bytes(job)
    model = job.architecture.parameters * job.strategy.weight_bytes
    copies = job.keep_last + 1 if job.saves_often else 1
    pinned = sum(item.num_bytes for item in items if item.is_pinned)
    return Forecast(
        job=job,
        machine=machine,
        items=items,
        device_bytes_per_rank=device,
        device_phase=device_phase,
        host_bytes_per_host=local * host,
        host_phase=host_phase,
        # A CPU has no device to pin for: torch leaves the memory as it is.
        pinned_bytes_per_rank=0 if job.is_on_cpu else pinned,
        shared_memory_bytes_per_host=local * _SHARED_PER_RANK * (job.is_on_cpu and local > 1),
        nvme_bytes_per_host=local * nvme,
        checkpoint_bytes=checkpoint,
        output_bytes=copies * checkpoint + model,
        state_bytes=count_state_bytes(job),
        work=work,
        time=time_step(work, machine, measured),
    )


def _build_work(job: Job, machine: Machine) -> StepWork:
    s = job.strategy
    pieces = list_pieces(job)
    elements = max(1, count_elements(pieces))
    masters = count_master_bytes(job, pieces) / elements
    moments = count_moment_bytes(job, pieces) / elements
    is_split = job.optimizer.is_host and s.is_split
    layout = Layout(
        stage=s.stage,
        ranks=job.ranks,
        rows=job.micro_batch,
        length=job.length,
        micro_batches=job.accumulation,
        offload_optimizer=s.optimizer_device,
        offload_param=s.parameter_device,
        checkpointing=job.checkpointing,
        attention=job.attention,
        is_packed=job.packing != "none",
        weight_bytes=s.weight_bytes,
        gradient_bytes=s.accumulation_bytes,
        sharing=describe_sharing(job),
    )
    update = Update(
        name="adamw_8bit" if job.optimizer.moment_bits == 8 else "adamw",
        implementation=job.optimizer.class_name,
        state_bytes=moments,
        # The model's own number is a part of it where a weight is split.
        master_bytes=masters + (s.weight_bytes if is_split else 0),
        swap_bytes=moments + masters if job.optimizer.is_host else 16.0,
    )
    return build_work(job.architecture, layout, update, machine)

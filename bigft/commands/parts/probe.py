"""Measuring this machine for a run."""

from collections.abc import Callable
from pathlib import Path

from bigft.planner.hardware import Precision
from bigft.planner.machine import Machine
from bigft.planner.strategy import read_strategy
from bigft.probe.measure import Probe, probe
from bigft.probe.slice import SliceJob
from bigft.run.job import (
    describe_architecture,
    find_swap_folder,
    name_planned_task,
    read_config,
)
from bigft.run.resolved import Resolved


def probe_run(resolved: Resolved, machine: Machine, report: Callable[[str], None]) -> Probe:
    """Measure the links of this machine, and a step of two layers of the model.

    Raises:
        UnknownArchitectureError: The model's family is not written down.
    """
    run, swap = resolved.run, find_swap_folder(resolved)
    precision: Precision = read_strategy(resolved.ds).precision
    job = SliceJob(
        config=read_config(run, resolved.facts),
        task=name_planned_task(run),
        length=run.data.max_length,
        rows=run.trainer.per_device_train_batch_size,
        checkpointing=run.model.activation_checkpointing,
        attention=run.model.attention,
        precision=precision,
        is_packed=run.data.packing != "none",
        parameters=describe_architecture(run, resolved.facts).parameters,
        threads=max(1, machine.cores // machine.ranks_per_host),
    )
    return probe(
        output_dir=Path(run.output_dir or "runs"),
        nvme_path=None if swap is None else Path(swap),
        job=job,
        report=report,
    )

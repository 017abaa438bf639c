"""Checks and builds that come before anything expensive."""

import os
from pathlib import Path

from bigft.checkpoint.resume import find_resume
from bigft.checkpoint.resume_apart import Resumed
from bigft.checkpoint.storages import Storages, describe_storages
from bigft.commands.parts.announce import announce
from bigft.commands.parts.plan import check_plan
from bigft.distributed.collectives import (
    errors_shared,
    local_rank_zero_first,
)
from bigft.distributed.place import HERE
from bigft.distributed.world import World
from bigft.engine.build import check_precision
from bigft.engine.communication import open_communication
from bigft.engine.operators import build_operators, check_build_tools, find_needed_operators
from bigft.log import Console
from bigft.optim.build import OptimizerPlan, plan_optimizer
from bigft.optim.native.binding import load_native
from bigft.planner.forecast import Forecast
from bigft.run.elastic import keep_global_batch, keep_launched_batch
from bigft.run.record import record
from bigft.run.resolved import Resolved


def check_first(
    resolved: Resolved, folder: Path, world: World, storages: Storages, console: Console
) -> tuple[Resolved, OptimizerPlan, Resumed | None, Forecast | None]:
    """Check the host and the run folder, say what will run, build DeepSpeed's operators.

    Returns:
        The settings with the checkpoint's global batch, the optimizer, the checkpoint to go on
        from, and the plan.
    """
    run = resolved.run
    checkpoints = folder / "checkpoints"
    resumed, notes = find_resume(run.checkpoint.resume, checkpoints, world.rank, storages)
    for note in notes:
        console.say(note)
    with errors_shared():
        if resumed is not None:
            resolved = keep_global_batch(resolved, resumed.manifest, world.size)
        else:
            launched = os.environ.get("BIGFT_GLOBAL_BATCH")
            resolved = keep_launched_batch(resolved, launched, world.size)
        optimizer = plan_optimizer(run.optim, resolved.ds)
        check_precision(resolved.ds)
        operators = find_needed_operators(
            resolved.ds,
            on_cpu=world.device.type == "cpu",
            uses_cpu_adam=optimizer.class_name == "DeepSpeedCPUAdam",
        )
        check_build_tools(operators)
        # A run that goes on may still be refused: until then `resolved/` is the first run's.
        if storages.leads(world.rank) and resumed is None:
            record(resolved, os.environ, folder)
    announce(resolved, optimizer, world, folder, console)
    if line := describe_storages(storages, checkpoints):
        console.say(line)
    with errors_shared():
        plan = check_plan(resolved, world, console)
    if plan is not None:
        HERE.note(
            planned_host_bytes=plan.host_bytes_per_host,
            planned_device_bytes=plan.device_bytes_per_rank or None,
        )
    HERE.note(phase="building DeepSpeed's operators")
    with errors_shared(), local_rank_zero_first(world):
        build_operators(operators)
        if optimizer.class_name == "HostAdamW":
            load_native()
    open_communication(world.device)
    return resolved, optimizer, resumed, plan

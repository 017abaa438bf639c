"""The private NVMe folder of a run."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bigft.commands.parts.model import count_planned_parameters
from bigft.distributed.collectives import (
    broadcast_object,
    errors_shared,
)
from bigft.distributed.world import World
from bigft.engine import swap
from bigft.engine.engine import Engine
from bigft.engine.host_swap import HostSwap
from bigft.engine.swap_verify import SwapGuard
from bigft.errors import PlanError
from bigft.models.facts import ModelFacts
from bigft.optim.build import OptimizerPlan
from bigft.run.resolved import Resolved
from bigft.tasks.task import Task
from bigft.units import format_bytes


@contextlib.contextmanager
def swap_folder(
    resolved: Resolved,
    optimizer: OptimizerPlan,
    folder: Path,
    facts: ModelFacts,
    tokenizer: Any,
    task: Task,
    world: World,
    before_leaving: Callable[[Callable[[], None]], None],
) -> Iterator[tuple[dict[str, Any], SwapGuard | None]]:
    """Give the JSON its private NVMe folder, guard what is written there, remove it at the end."""
    if not swap.find_swap_roots(resolved.ds):
        yield resolved.ds, None
        return
    private = swap.with_private_swap(resolved.ds, broadcast_object(swap.new_run_name()))
    first_here = world.local_rank == 0
    try:
        with errors_shared():
            if first_here:
                _open_swap(resolved, optimizer, private, facts, tokenizer, task, world)
                before_leaving(lambda: swap.close_swap(private))
        guard = SwapGuard()
        with guard.installed():
            yield private, guard
    finally:
        if first_here:
            swap.close_swap(private)
            with contextlib.suppress(OSError):
                # nvme_path "auto" made a folder of its own in the run folder; it is empty now.
                (folder / "nvme").rmdir()


def reserve_swap(engine: Engine, optimizer: OptimizerPlan) -> None:
    """Take the disk space of all swap files before the first step. Collective: every rank.

    Raises:
        PlanError: It is not there.
    """
    if engine.swap_guard is None:
        return
    engine.swap_guard.check(PlanError)
    with errors_shared():
        if engine.host_swap is not None:
            _reserve_pieces(engine.host_swap)
        num_states = round(optimizer.state_bytes_per_parameter / 4)
        engine.swap_guard.reserve(engine.deepspeed, num_states)


def _reserve_pieces(files: HostSwap) -> None:
    try:
        files.reserve()
    except OSError as error:
        raise PlanError(
            f"{files.folder}: {format_bytes(files.num_bytes)} are needed for the optimizer's swap"
            f" files, and cannot be had ({error.strerror}); free some space, name a larger disk"
            " with nvme_path, or offload to host memory with ds_configs/zero3_offload.json"
        ) from error


def _open_swap(
    resolved: Resolved,
    optimizer: OptimizerPlan,
    private: dict[str, Any],
    facts: ModelFacts,
    tokenizer: Any,
    task: Task,
    world: World,
) -> None:
    swap.remove_orphans(resolved.ds)
    count = count_planned_parameters(resolved.run, task, facts, tokenizer)
    needed = swap.plan_swap_bytes(
        resolved.ds, optimizer.swap_bytes_per_parameter, count, world.local_size / world.size
    )
    swap.open_swap(private, needed, count)
    swap.sign_swap(private)

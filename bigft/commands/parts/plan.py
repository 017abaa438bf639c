"""A run held against its plan: before anything is loaded, and once it has trained."""

import json
import os
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bigft.distributed.collectives import gather_rows
from bigft.distributed.world import World
from bigft.errors import BigftError, PlanError
from bigft.log import Console
from bigft.monitor.meters import read_peak_rss_bytes, read_rss_bytes
from bigft.planner.architecture.case import UnknownArchitectureError
from bigft.planner.forecast import Forecast, forecast
from bigft.planner.memory import CONTEXT
from bigft.planner.report import describe_plan
from bigft.run.job import plan_run, read_this_machine
from bigft.run.resolve import find_repairs
from bigft.run.resolved import Resolved
from bigft.trainer.hooks import StepReport
from bigft.trainer.state import State
from bigft.units import format_bytes, format_seconds

PLAN_NAME = "plan.json"


def check_plan(resolved: Resolved, world: World, console: Console) -> Forecast | None:
    """Plan the run, and refuse it where it cannot fit.

    Returns:
        The plan; None where none was asked for, or the model's family is not known.

    Raises:
        PlanError: Memory lacks, even if the forecast is 10% too high. Disks are checked by those
            who write there and know what can make room.
    """
    mode = resolved.run.plan.check
    if mode == "off":
        return None
    try:
        machine = read_this_machine(resolved, os.environ)
        if machine.device != world.device.type:
            console.say(
                f"note: no plan: the ranks are on {world.device.type}, which nvidia-smi does not"
                " tell of"
            )
            return None
        if machine.device == "cuda":
            # What CUDA keeps is there already, and part of the forecast.
            free = torch.cuda.mem_get_info(world.device)[0] + CONTEXT
            machine = replace(machine, device_bytes=free)
        # What the ranks of this host have in memory already is part of the forecast.
        machine = replace(
            machine, host_bytes=machine.host_bytes + world.local_size * read_rss_bytes()
        )
        plan = forecast(*plan_run(resolved, os.environ, machine))
    except UnknownArchitectureError as error:
        console.say(f"note: no plan: {error}")
        return None
    host = format_bytes(plan.host_bytes_per_host)
    device = format_bytes(plan.device_bytes_per_rank)
    where = host if plan.job.is_on_cpu else f"{device} per device and {host} of host memory"
    console.say(
        f"plan: {where} at the peak, {format_seconds(plan.time.total)} per step, mostly"
        f" {plan.time.bottleneck}"
    )
    if plan.lacks:
        is_hopeless = any(one.is_hopeless for one in plan.lacks)
        _complain(plan, resolved, console, refuses=mode == "error" and is_hopeless)
    return plan


def _complain(plan: Forecast, resolved: Resolved, console: Console, *, refuses: bool) -> None:
    lacks = [
        f"{one.what}: {format_bytes(one.needed)} are needed, and there are"
        f" {format_bytes(one.available or 0)}"
        for one in plan.lacks
    ]
    if not refuses:
        for lack in lacks:
            console.say(f"warning: plan: {lack}")
        return
    try:
        repairs = find_repairs(resolved.request, os.environ)
    except (BigftError, UnknownArchitectureError) as error:
        repairs = [str(error)]
    advice = "\n".join(f"  {line}" for line in repairs)
    raise PlanError(
        f"the run does not fit: {'; '.join(lacks)}. What would fit:\n{advice}\n(--plan.check warn"
        " tries it all the same; `bigft plan` with the same settings shows every part)"
    )


class PlanRecord:
    """A hook that measures what was forecast."""

    def __init__(self, plan: Forecast | None, world: World, folder: Path, console: Console) -> None:
        """Take the plan, and where the record goes."""
        self._plan = plan
        self._world = world
        self._folder = folder
        self._console = console
        self._seconds: list[float] = []

    def started(self, state: State, total_steps: int) -> None:
        """Do nothing."""

    def stepped(self, state: State, report: StepReport) -> None:
        """Keep how long it took; the first steps build and learn."""
        self._seconds.append(report.seconds)

    def finished(self, state: State) -> None:
        """Write what was forecast beside what came. Collective: every rank."""
        if self._plan is None:
            return
        device = self._world.device
        peak = 0 if device.type == "cpu" else torch.accelerator.max_memory_allocated(device)
        rows = gather_rows([float(read_peak_rss_bytes()), float(peak)], device)
        if not self._world.is_rank_zero:
            return
        seconds = self._seconds[2:] or self._seconds
        measured = {
            "host_bytes_per_host": int(rows[: self._world.local_size, 0].sum()),
            "device_bytes_per_rank": int(rows[:, 1].max()),
            "seconds_per_step": statistics.median(seconds) if seconds else None,
        }
        predicted = describe_plan(self._plan, [])
        text = json.dumps({"predicted": predicted, "measured": measured}, indent=2)
        (self._folder / PLAN_NAME).write_text(f"{text}\n", encoding="utf-8")
        self._say(predicted, measured)

    def _say(self, predicted: dict[str, Any], measured: dict[str, Any]) -> None:
        parts = []
        for name, key in (
            ("host memory", "host_bytes_per_host"),
            ("device memory", "device_bytes_per_rank"),
        ):
            if predicted[key] and measured[key]:
                off = predicted[key] / measured[key] - 1
                parts.append(
                    f"{name} {format_bytes(predicted[key])} forecast,"
                    f" {format_bytes(measured[key])} measured ({off:+.0%})"
                )
        if measured["seconds_per_step"]:
            parts.append(
                f"a step {format_seconds(predicted['seconds_per_step'])} forecast,"
                f" {format_seconds(measured['seconds_per_step'])} measured"
            )
        self._console.say(f"plan: {'; '.join(parts)}")

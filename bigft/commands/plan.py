"""Bytes and seconds of a run, by arithmetic; nothing is loaded and nothing is written."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from bigft.config.options import PlanOptions, split_options
from bigft.config.request import Request
from bigft.errors import BigftError, ConfigError, PlanError, raise_together
from bigft.planner.architecture.case import UnknownArchitectureError
from bigft.planner.forecast import Forecast, forecast
from bigft.planner.hardware import Given, parse_machine
from bigft.planner.machine import Machine
from bigft.planner.report import describe_plan, render_plan
from bigft.planner.strategy import read_strategy
from bigft.redact import redact_text
from bigft.run.job import find_swap_folder, plan_run
from bigft.run.report import describe_model, describe_strategy
from bigft.run.resolve import find_repairs, resolve
from bigft.run.resolved import Resolved
from bigft.units import format_bytes, format_count

if TYPE_CHECKING:
    from bigft.probe.measure import Probe


@dataclass(frozen=True)
class Made:
    """A plan, and what it was made from."""

    plan: Forecast
    resolved: Resolved
    options: PlanOptions
    advice: list[str]
    """What would fit, where this does not."""


def main(request: Request) -> None:
    """Plan, and print.

    Raises:
        PlanError: It does not fit; the page has been printed, with what would.
    """
    made = make_plan(request)
    if made.options.as_json:
        page = json.dumps(describe_plan(made.plan, made.advice)) + "\n"
    else:
        page = _render(made)
    sys.stdout.write(redact_text(page))
    if not made.plan.fits:
        lacking = ", ".join(one.what for one in made.plan.demands if not one.is_met)
        raise PlanError(f"the run does not fit: {lacking}; the page says what would")


def make_plan(request: Request) -> Made:
    """Plan the run of a request on the machine that it describes.

    Raises:
        ConfigError: Settings or hardware are wrong; all problems are listed.
        PlanError: The planner was to choose, and nothing fits.
    """
    problems: list[str] = []
    options, rest = split_options(request, PlanOptions, problems)
    if problems:
        raise_together(ConfigError, problems)
    environ = _imagine_launch(options, os.environ)
    describe = partial(_describe_machine, options)
    resolved = resolve(rest, environ, machine_of=describe)
    machine = describe(resolved)
    measured = None
    if options.probe:
        _check_probed(options)
        try:
            measured = _probe(resolved, machine).slice
        except UnknownArchitectureError as error:
            _tell(f"bigft: {error}: no slice of it can be measured")
        _parse.cache_clear()
        machine = describe(resolved)
    try:
        job, machine = plan_run(resolved, environ, machine)
    except UnknownArchitectureError as error:
        from bigft.commands.parts.architecture import read_skeleton

        _tell(f"bigft: {error}; transformers is asked, which takes some seconds")
        job, machine = plan_run(resolved, environ, machine, architecture=read_skeleton(resolved))
    plan = forecast(job, machine, measured)
    advice: list[str] = []
    if not plan.fits:
        try:
            advice = find_repairs(rest, environ, describe)
        except (BigftError, UnknownArchitectureError) as error:
            advice = [str(error)]
    return Made(plan, resolved, options, advice)


def _imagine_launch(options: PlanOptions, environ: Mapping[str, str]) -> dict[str, str]:
    """Say how many ranks there would be, as a launcher does."""
    own = {name: text for name, text in environ.items() if name not in ("WORLD_SIZE", "LOCAL_SIZE")}
    machine = _parse(options, Path("runs"), None, "bf16")
    return {**own, "WORLD_SIZE": str(machine.ranks), "LOCAL_SIZE": str(machine.ranks_per_host)}


def _describe_machine(options: PlanOptions, resolved: Resolved) -> Machine:
    swap = find_swap_folder(resolved)
    folder = Path(resolved.run.output_dir or "runs")
    precision = read_strategy(resolved.ds).precision
    return _parse(options, folder, None if swap is None else Path(swap), precision)


@cache
def _parse(options: PlanOptions, folder: Path, swap: Path | None, precision: str) -> Machine:
    given = Given(
        gpus=options.gpus,
        host_memory=options.host_memory,
        nvme=options.nvme,
        hosts=options.hosts,
        pcie=options.pcie,
        network=options.network,
    )
    return parse_machine(
        given,
        output_dir=folder,
        nvme_path=swap,
        precision=precision,  # type: ignore[arg-type]
        ranks=options.num_gpus,
    )


def _check_probed(options: PlanOptions) -> None:
    if options.gpus:
        raise ConfigError(
            f"--probe with --gpus {options.gpus}: only this machine can be measured; leave one out"
        )


def _probe(resolved: Resolved, machine: Machine) -> "Probe":
    from bigft.commands.parts.probe import probe_run

    return probe_run(resolved, machine, _tell)


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _render(made: Made) -> str:
    plan, resolved = made.plan, made.resolved
    title = [
        f"model      {describe_model(resolved)}, {format_count(plan.job.architecture.parameters)}"
        " parameters",
        f"strategy   {describe_strategy(resolved)}",
        f"step       {_describe_step(plan)}",
        f"machine    {_describe_hardware(plan.machine)}",
        *resolved.announced,
    ]
    heading = ["what would fit, the fastest first:"] if made.advice else []
    return render_plan(plan, title, [*heading, *made.advice])


def _describe_step(plan: Forecast) -> str:
    job = plan.job
    return (
        f"{job.micro_batch} x {job.length} tokens per rank, {job.accumulation} times, on"
        f" {job.ranks} rank{'s' if job.ranks > 1 else ''}; activation checkpointing"
        f" {job.checkpointing}, attention {job.attention}"
    )


def _describe_hardware(machine: Machine) -> str:
    hosts = f"{machine.hosts} hosts with " if machine.hosts > 1 else ""
    memory = f"{format_bytes(machine.host_bytes)} of host memory"
    if machine.device == "cpu":
        return f"{hosts}{machine.device_name}, {machine.cores} cores, no GPU, {memory}"
    device = f"{machine.ranks_per_host} x {machine.device_name}"
    return f"{hosts}{device}, {format_bytes(machine.device_bytes)} each, {memory}"

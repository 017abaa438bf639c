"""Bytes and seconds of a run, by arithmetic; nothing is loaded and nothing is written."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigft.config.options import PlanOptions, split_options
from bigft.config.request import Request
from bigft.errors import BigftError, ConfigError, PlanError, raise_together
from bigft.planner.architecture.case import UnknownArchitectureError
from bigft.planner.forecast import Forecast, forecast
from bigft.planner.hardware import Given, parse_machine
from bigft.planner.machine import Machine, SliceMeasurement
from bigft.planner.network_advice import Advice, advise_network, describe_advice
from bigft.planner.report import describe_plan, render_plan
from bigft.planner.scaling import (
    Row,
    describe_scaling,
    parse_hosts,
    render_scaling,
    scale,
)
from bigft.planner.strategy import read_strategy
from bigft.redact import redact_text
from bigft.run.job import find_swap_folder, plan_run
from bigft.run.report import describe_model, describe_strategy
from bigft.run.resolve import find_repairs, resolve
from bigft.run.resolved import Resolved
from bigft.units import format_bytes, format_count, parse_count

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

    quicker: list[Advice]
    """What would make it wait less for the network."""

    measured: SliceMeasurement | None = None
    rows: list[Row] = field(default_factory=list)
    """The same on other numbers of hosts, where several were asked for."""

    tokens: float = 0.0
    """Of the data, for the time of each row."""


def main(request: Request) -> None:
    """Plan, and print.

    Raises:
        PlanError: It does not fit; the page has been printed, with what would.
    """
    made = make_plan(request)
    page = json.dumps(describe(made)) + "\n" if made.options.as_json else _render(made)
    sys.stdout.write(redact_text(page))
    if made.rows:
        if not any(row.plan and row.plan.fits for row in made.rows):
            raise PlanError("the run fits on none of these numbers of hosts")
    elif not made.plan.fits:
        lacking = ", ".join(one.what for one in made.plan.demands if not one.is_met)
        raise PlanError(f"the run does not fit: {lacking}; the page says what would")


def describe(made: Made) -> dict[str, Any]:
    """Return a plan, or a table of several, as plain values."""
    if made.rows:
        return describe_scaling(made.rows, made.tokens)
    quicker = [describe_advice(one) for one in made.quicker]
    return describe_plan(made.plan, made.advice) | {"network_advice": quicker}


def make_plan(request: Request) -> Made:
    """Plan the run of a request on the machine that it describes.

    Raises:
        ConfigError: Settings or hardware are wrong; all problems are listed.
        PlanError: The planner was to choose, and nothing fits.
    """
    problems: list[str] = []
    options, rest = split_options(request, PlanOptions, problems)
    hosts, tokens = _read_table(options, problems)
    if problems:
        raise_together(ConfigError, problems)
    if len(hosts) == 1:
        return _plan_on(options, rest, hosts[0])
    made = _plan_on_first(options, rest, hosts)
    rows = scale(
        *(made.plan.job, made.plan.machine, hosts),
        keeps_batch=options.scale == "global_batch",
        measured=made.measured,
    )
    return replace(made, rows=rows, tokens=tokens)


def _read_table(options: PlanOptions, problems: list[str]) -> tuple[list[int], float]:
    hosts, tokens = [1], 0.0
    try:
        hosts = parse_hosts(options.hosts or "1")
    except ValueError as error:
        problems.append(f"--hosts {options.hosts}: {error}")
    try:
        tokens = float(parse_count(options.tokens))
    except ValueError as error:
        problems.append(f"--tokens {options.tokens}: {error}")
    return hosts, tokens


def _plan_on_first(options: PlanOptions, rest: Request, hosts: Sequence[int]) -> Made:
    """Plan for the fewest hosts for which there is a way of training."""
    for number in hosts[:-1]:
        try:
            return _plan_on(options, rest, number)
        except PlanError:
            continue
    return _plan_on(options, rest, hosts[-1])


def _plan_on(options: PlanOptions, rest: Request, hosts: int) -> Made:
    environ = _imagine_launch(options, hosts, os.environ)
    describe = partial(_describe_machine, options, hosts)
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
    quicker = advise_network(plan, measured) if plan.fits else []
    return Made(plan, resolved, options, advice, quicker, measured)


def _imagine_launch(options: PlanOptions, hosts: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Say how many ranks there would be, as a launcher does."""
    own = {name: text for name, text in environ.items() if name not in ("WORLD_SIZE", "LOCAL_SIZE")}
    machine = _parse(options, hosts, Path("runs"), None, "bf16")
    return {**own, "WORLD_SIZE": str(machine.ranks), "LOCAL_SIZE": str(machine.ranks_per_host)}


def _describe_machine(options: PlanOptions, hosts: int, resolved: Resolved) -> Machine:
    swap = find_swap_folder(resolved)
    folder = Path(resolved.run.output_dir or "runs")
    precision = read_strategy(resolved.ds).precision
    return _parse(options, hosts, folder, None if swap is None else Path(swap), precision)


@cache
def _parse(
    options: PlanOptions, hosts: int, folder: Path, swap: Path | None, precision: str
) -> Machine:
    given = Given(
        gpus=options.gpus,
        host_memory=options.host_memory,
        nvme=options.nvme,
        hosts=hosts if options.hosts else None,
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
    if made.rows:
        keeps = made.options.scale == "global_batch"
        return render_scaling(made.rows, title, made.tokens, keeps_batch=keeps)
    heading = ["what would fit, the fastest first:"] if made.advice else []
    lines = [*heading, *made.advice]
    if made.quicker:
        lines += ["what would wait less for the network, the fastest first, each by itself:"]
        lines += [f"  {one.describe(plan)}" for one in made.quicker]
    return render_plan(plan, title, lines)


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

"""`--config auto`: the fastest way of training that fits, found by planning all of them.

    templates x checkpointing x micro-batches x optimizers --forecast--> fastest that fits

What a person has written stays: only what nobody asked for is chosen. The sequences of a step, and
so what is learned, are those that were asked for, however they are cut into micro-batches.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bigft.config.flags import to_flag
from bigft.errors import BigftError, ConfigError, PlanError
from bigft.planner.forecast import OUTPUT, Demand, Forecast, forecast
from bigft.planner.job import Checkpointing, Job
from bigft.planner.machine import Machine
from bigft.planner.templates import FILES, TEMPLATES, build_template
from bigft.run.resolved import Resolved
from bigft.units import format_bytes, format_seconds

CHOSEN = "auto ("
"""What the name of a DeepSpeed JSON begins with that was chosen here."""

CHOICE_NAME = "chosen.json"
"""File of `resolved/` that says what was chosen, so that a run goes on with it."""

ORIGIN = "chosen by --config auto"
"""Where a setting came from that was chosen."""

ROOM = 0.95
"""Share of what is there that a chosen plan may take: forecasts are a little off."""

WORTH_8BIT = 1.5
"""How many times faster a plan with 8-bit moments has to be to take the place of one with fp32
ones, which nobody has asked to change."""

Resolve = Callable[[Mapping[str, Any], Mapping[str, Any], str], Resolved]
"""A template, values of settings that nobody typed, and a label -> the whole run."""

_MICRO = "trainer.per_device_train_batch_size"
_ACCUMULATION = "trainer.gradient_accumulation_steps"
_CHECKPOINTING = "model.activation_checkpointing"
_OPTIMIZER = "optim.name"


@dataclass(frozen=True)
class Candidate:
    """One way of training."""

    template: str
    values: Mapping[str, Any]
    """Settings that are not as they are by default."""

    plan: Forecast

    @property
    def seconds(self) -> float:
        """Of a step; all candidates train as many sequences in one."""
        return self.plan.time.total

    def describe(self) -> str:
        """Say what it is in a few words."""
        return ", ".join(
            [self.template, *(f"{name} {value}" for name, value in self.values.items())]
        )

    def to_flags(self) -> str:
        """Write it as flags."""
        name = FILES.get(self.template, "auto")
        flags = (f"{to_flag(path)} {value}" for path, value in self.values.items())
        return " ".join([f"--config {name}", *flags])


def describe_choice(resolved: Resolved) -> dict[str, Any]:
    """Return what was chosen for a run: the template's name and settings, by dotted path."""
    values = {}
    for path, origin in resolved.origin.items():
        if origin == ORIGIN:
            value: Any = resolved.run
            for part in path.split("."):
                value = getattr(value, part)
            values[path] = value
    return {"template": resolved.config.removeprefix(CHOSEN).removesuffix(")"), "values": values}


def read_choice(folder: Path) -> tuple[str, dict[str, Any]] | None:
    """Read what was chosen when the run of a folder began; None where that cannot be known."""
    try:
        found = json.loads((folder / "resolved" / CHOICE_NAME).read_text(encoding="utf-8"))
        template, values = found["template"], dict(found["values"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (template, values) if template in TEMPLATES else None


def choose(
    resolve: Resolve, plan: Callable[[Resolved], tuple[Job, Machine]], typed: Mapping[str, Any]
) -> tuple[Resolved, Candidate]:
    """Choose the fastest plan that fits.

    Args:
        resolve: Resolves the run with a template.
        plan: Describes a resolved run and its machine to the planner.
        typed: What a person has written, by dotted path.

    Returns:
        The run, resolved with it, and what was chosen.

    Raises:
        ConfigError: The settings are wrong, whatever is chosen.
        PlanError: Nothing fits; says what comes nearest.
        UnknownArchitectureError: The model's family is not written down.
    """
    found = list_candidates(resolve, plan, typed)
    best = _find_best(found)
    if best is None:
        raise PlanError(_describe_nearest(found))
    resolved = resolve(build_template(best.template), best.values, f"{CHOSEN}{best.template})")
    told = _explain(best, found)
    return replace(resolved, announced=[*told, *resolved.announced]), best


def list_candidates(
    resolve: Resolve, plan: Callable[[Resolved], tuple[Job, Machine]], typed: Mapping[str, Any]
) -> list[Candidate]:
    """Plan all ways of training that keep to what was written.

    Raises:
        ConfigError: The settings are wrong, whatever is chosen.
    """
    jobs = list(_list_jobs(resolve, plan))
    found = [one for job in jobs for one in _vary(*job, typed, tries_8bit=False)]
    if _OPTIMIZER not in typed:
        found += [one for job in jobs for one in _vary(*job, typed, tries_8bit=True)]
    return found


def _find_best(found: Sequence[Candidate]) -> Candidate | None:
    """Find the fastest that fits; 8-bit moments only where they are worth it."""
    fitting = sorted((one for one in found if has_room(one.plan)), key=lambda one: one.seconds)
    plain = next((one for one in fitting if _OPTIMIZER not in one.values), None)
    if plain is None or fitting[0].seconds * WORTH_8BIT < plain.seconds:
        return fitting[0] if fitting else None
    return plain


def find_advice(found: Sequence[Candidate]) -> list[str]:
    """Say what to change so that it fits, the cheapest change first; three of them at most."""
    fitting = sorted((one for one in found if has_room(one.plan)), key=lambda one: one.seconds)
    best: dict[str, Candidate] = {}
    for one in fitting:
        best.setdefault(one.template, one)
    lines = [f"{one.to_flags()}: {format_seconds(one.seconds)} per step" for one in best.values()]
    return lines[:3] or [_describe_nearest(found).partition(": ")[2]]


def _list_jobs(
    resolve: Resolve, plan: Callable[[Resolved], tuple[Job, Machine]]
) -> Iterator[tuple[str, Job, Machine]]:
    """Plan every template; one that these settings contradict is left out."""
    first: BigftError | None = None
    is_empty = True
    for name in TEMPLATES:
        try:
            resolved = resolve(build_template(name), {}, f"{CHOSEN}{name})")
            job, machine = plan(resolved)
        except ConfigError as error:
            first = first or error
            continue
        is_empty = False
        if name == "zero3_hosts" and job.strategy.group == 1:
            continue  # One host, or one rank on each.
        yield name, job, machine
    if is_empty and first is not None:
        raise first


def _vary(
    name: str, job: Job, machine: Machine, typed: Mapping[str, Any], *, tries_8bit: bool
) -> Iterator[Candidate]:
    for job_, values in _list_variants(job, machine, typed, tries_8bit=tries_8bit):
        yield Candidate(name, values, forecast(job_, machine))


def _list_variants(
    job: Job, machine: Machine, typed: Mapping[str, Any], *, tries_8bit: bool
) -> Iterator[tuple[Job, dict[str, Any]]]:
    modes: list[Checkpointing] = [job.checkpointing]
    if _CHECKPOINTING not in typed:
        modes = ["full", "none"] if job.is_on_cpu else ["full", "none", "full_cpu_offload"]
    micros = [job.micro_batch]
    total = job.micro_batch * job.accumulation
    if not {_MICRO, _ACCUMULATION} & typed.keys():
        micros = [count for count in range(1, total + 1) if total % count == 0]
    optimizer = job.optimizer
    if tries_8bit:
        if not (optimizer.is_host or job.strategy.optimizer_device == "none"):
            return
        class_name = optimizer.class_name if optimizer.is_host else "HostAdamW8bit"
        optimizer = replace(optimizer, class_name=class_name, moment_bits=8)
    for mode, micro in itertools.product(modes, micros):
        values: dict[str, Any] = {}
        if tries_8bit:
            values[_OPTIMIZER] = "adamw_8bit"
        if mode != job.checkpointing:
            values[_CHECKPOINTING] = mode
        if micro != job.micro_batch:
            values |= {_MICRO: micro, _ACCUMULATION: total // micro}
        changed = replace(
            job,
            checkpointing=mode,
            micro_batch=micro,
            accumulation=total // micro,
            optimizer=optimizer,
        )
        yield changed, values


def _find_lack(candidate: Candidate) -> Demand:
    """Find what is fullest."""
    return max(candidate.plan.demands, key=_find_share)


def _find_share(demand: Demand) -> float:
    return 0.0 if demand.available is None else demand.needed / max(demand.available, 1)


def has_room(plan: Forecast) -> bool:
    """Whether a plan fits with some room left; what all ways of training write is not asked."""
    return all(_find_share(demand) <= ROOM for demand in plan.demands if demand.what != OUTPUT)


def _explain(best: Candidate, found: Sequence[Candidate]) -> list[str]:
    """Say in three lines what was chosen and why."""
    plan = best.plan
    needs = ", ".join(
        f"{demand.what} {format_bytes(demand.needed)}"
        + (f" of {format_bytes(demand.available)}" if demand.available is not None else "")
        for demand in plan.demands[:2]
    )
    lines = [
        f"--config auto: {best.describe()}, the fastest of {len(found)} plans that fits:"
        f" {format_seconds(best.seconds)} per step, most of it {plan.time.bottleneck}",
        f"--config auto: it takes {needs}",
    ]
    faster = [one for one in found if one.seconds < best.seconds and not has_room(one.plan)]
    if faster:
        closest = min(faster, key=lambda one: one.seconds)
        lack = next(
            d for d in closest.plan.demands if d.available and d.needed > ROOM * d.available
        )
        lines.append(
            f"--config auto: {closest.describe()} would take {format_seconds(closest.seconds)}, but"
            f" {format_bytes(lack.needed)} of {lack.what}, and there are"
            f" {format_bytes(lack.available or 0)}"
        )
    else:
        lines.append("--config auto: nothing that was planned is faster")
    return lines


def _describe_nearest(found: Sequence[Candidate]) -> str:
    nearest = min(found, key=lambda one: _find_share(_find_lack(one)))
    lack = _find_lack(nearest)
    return (
        f"--config auto: none of {len(found)} plans fits. {nearest.describe()} comes nearest: it"
        f" needs {format_bytes(lack.needed)} of {lack.what}, and there are"
        f" {format_bytes(lack.available or 0)}. Use a smaller model, a shorter --max_length"
        f" ({nearest.plan.job.length}), more ranks or hosts, or a machine with more of it"
    )

"""What would make a run wait less for the network between its hosts, with seconds before and after.

Every way is planned as the run itself is; only those that fit and make a step shorter are told.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from bigft.planner.forecast import Forecast, forecast
from bigft.planner.job import Job
from bigft.planner.machine import SliceMeasurement
from bigft.units import format_bytes, format_seconds

_WORTH = 0.97
"""Of a step's seconds, that a way has to come below."""

_MOST = 4
_WIDE = 100_000_000
"""Elements of larger buckets: 200 MB of bf16."""

_ZERO = "--ds.zero_optimization"


@dataclass(frozen=True)
class Advice:
    """One change, and what it would do."""

    flags: str
    plan: Forecast
    why: str
    is_neutral: bool = True
    """Whether the numbers of the run stay what they are, but for the order of sums."""

    def describe(self, before: Forecast) -> str:
        """Say it in a line."""
        more = self.plan.device_bytes_per_rank - before.device_bytes_per_rank
        if self.plan.job.is_on_cpu:
            more = self.plan.host_bytes_per_host - before.host_bytes_per_host
        where = "host" if self.plan.job.is_on_cpu else "device"
        memory = f"; {format_bytes(abs(more))} {'more' if more > 0 else 'less'} on each {where}"
        return (
            f"{self.flags}: {format_seconds(before.time.total)} ->"
            f" {format_seconds(self.plan.time.total)} per step{memory if more else ''}. {self.why}"
        )


def advise_network(plan: Forecast, measured: SliceMeasurement | None = None) -> list[Advice]:
    """Find what would make a step shorter where the network between hosts makes it long.

    Returns:
        The fastest first, four at most; none on one host, or where something else takes longer.
    """
    if plan.machine.hosts == 1:
        return []
    limit = _WORTH * plan.time.total
    found = []
    for job, flags, why, is_neutral in _list_ways(plan.job):
        other = forecast(job, plan.machine, measured)
        if other.fits and other.time.total < limit:
            found.append(Advice(flags, other, why, is_neutral))
    # Of what changes the numbers, only what is faster than all that does not.
    neutral = sorted((one for one in found if one.is_neutral), key=_seconds)
    best = _seconds(neutral[0]) if neutral else plan.time.total
    other_numbers = [one for one in found if not one.is_neutral and _seconds(one) < _WORTH * best]
    return [*neutral[: _MOST - 1], *sorted(other_numbers, key=_seconds)][:_MOST]


def _seconds(advice: Advice) -> float:
    return advice.plan.time.total


def _list_ways(job: Job) -> Iterator[tuple[Job, str, str, bool]]:
    s = job.strategy
    if s.stage in (1, 2) and s.reduction == "all":
        yield (
            _change(job, reduction="owner"),
            f"{_ZERO}.use_multi_rank_bucket_allreduce=false",
            "Each part of the gradients goes to the rank that updates it, and to no other",
            True,
        )
    if s.stage == 2 and job.accumulation > 1:
        yield (
            _change(job, stage=1),
            f"{_ZERO}.stage=1",
            "Gradients are summed once per step, not for every micro-batch",
            True,
        )
    if s.stage == 3:
        yield from _list_ways_of_parameters(job)


def _list_ways_of_parameters(job: Job) -> Iterator[tuple[Job, str, str, bool]]:
    s, local = job.strategy, job.ranks_per_host
    wide = {"prefetch_bucket": _WIDE, "reduce_bucket": _WIDE}
    buckets = f"{_ZERO}.stage3_prefetch_bucket_size={_WIDE} {_ZERO}.reduce_bucket_size={_WIDE}"
    group = f"{_ZERO}.zero_hpz_partition_size={local}"
    is_small = s.prefetch_bucket < _WIDE or s.reduce_bucket < _WIDE
    can_group = s.group == 1 and local > 1 and s.parameter_device == "none"
    inside = "Each host keeps all weights until they change, and gathers them inside"
    if can_group:
        yield _change(job, group=local), group, inside, True
    if is_small:
        yield _change(job, **wide), buckets, "Fewer and larger messages", True
    if can_group and is_small:
        both = _change(job, group=local, **wide)
        yield both, f"{group} {buckets}", f"{inside}, in fewer and larger messages", True
    if s.parameter_device == "none":
        yield (
            _change(job, stage=1, reduction="all"),
            f"{_ZERO}.stage=1",
            "All weights are on every rank, and cross the network once per step",
            True,
        )
    if job.is_on_cpu:
        return
    for name, flag in (
        ("quantizes_weights", "zero_quantized_weights"),
        ("quantizes_gradients", "zero_quantized_gradients"),
    ):
        if not getattr(s, name):
            yield (
                _change(job, **{name: True}),
                f"{_ZERO}.{flag}=true",
                "CHANGES THE NUMBERS: they are sent in fewer bits",
                False,
            )


def _change(job: Job, **changes: Any) -> Job:
    return replace(job, strategy=replace(job.strategy, **changes))


def describe_advice(advice: Advice) -> dict[str, Any]:
    """Return it as plain values."""
    return {
        "flags": advice.flags,
        "seconds_per_step": advice.plan.time.total,
        "device_bytes_per_rank": advice.plan.device_bytes_per_rank,
        "host_bytes_per_host": advice.plan.host_bytes_per_host,
        "same_numbers": advice.is_neutral,
        "why": advice.why,
    }

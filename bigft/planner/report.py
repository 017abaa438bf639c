"""A plan as a page that is read at a glance, and as plain values."""

from collections.abc import Iterator, Sequence
from typing import Any

from bigft.planner.forecast import Forecast
from bigft.planner.items import Item, Where
from bigft.planner.limits import find_largest_length, find_largest_micro_batch
from bigft.planner.machine import Rate
from bigft.planner.traffic import Flow
from bigft.units import format_bytes, format_count, format_seconds

_PLACES: tuple[tuple[Where, str], ...] = (
    ("device", "memory of the device, per rank"),
    ("host", "host memory, per rank"),
    ("nvme", "NVMe, per rank"),
)
_PHASES = {
    "build": "while the engine is built",
    "loss": "at the end of the forward pass",
    "backward": "in the backward pass",
    "step": "in the optimizer's step",
}


def render_plan(plan: Forecast, title: Sequence[str], advice: Sequence[str]) -> str:
    """Return the page.

    Args:
        plan: What was forecast.
        title: What was planned, line by line.
        advice: What to change, the cheapest first.
    """
    lines = [*title, ""]
    for where, name in _PLACES:
        lines += _list_place(plan, where, name)
    lines += [*_list_time(plan), "", *_list_traffic(plan), *_list_verdict(plan)]
    lines += [f"  {line}" for line in advice]
    return "\n".join(lines) + "\n"


def _list_place(plan: Forecast, where: Where, name: str) -> Iterator[str]:
    phase = {"device": plan.device_phase, "host": plan.host_phase, "nvme": "build"}[where]
    items = [item for item in plan.items if item.where == where]
    if not items:
        return
    total = sum(item.num_bytes for item in items if phase in item.phases)
    when = "" if where == "nvme" else f" at its peak, {_PHASES[phase]}"
    yield f"{name}{when}"
    for item in _merge(items):
        if phase in item.phases:
            pinned = "  pinned" if item.is_pinned and not plan.job.is_on_cpu else ""
            yield f"  {item.name:36}{format_bytes(item.num_bytes):>12}{pinned}"
    yield f"  {'together':36}{format_bytes(total):>12}"
    yield ""


def _merge(items: Sequence[Item]) -> list[Item]:
    return sorted(items, key=lambda item: -item.num_bytes)


def _list_time(plan: Forecast) -> Iterator[str]:
    time, rates = plan.time, plan.machine.rates
    parts = (
        ("compute", time.compute, describe_origin(rates.matrix)),
        ("between host and device", time.pcie, describe_origin(rates.pcie)),
        ("optimizer", time.host_optimizer, describe_origin(rates.host_memory)),
        ("NVMe", time.nvme, describe_origin(rates.disk_read)),
        ("network", time.network, _name_origin(plan)),
        ("Python and launches", time.overhead, "typical rate"),
    )
    yield "seconds of a step (what is done at the same time counts once in the sum)"
    for name, seconds, origin in parts:
        if seconds >= 0.0005:
            how = "measured" if name == "compute" and time.is_calibrated else origin
            yield f"  {name:36}{format_seconds(seconds):>12}  {how}"
    rate = format_count(time.tokens_per_second)
    yield f"  {'together':36}{format_seconds(time.total):>12}  {rate} tokens per second"


def _name_origin(plan: Forecast) -> str:
    rates = plan.machine.rates
    return describe_origin(rates.peer if plan.machine.hosts == 1 else rates.network)


def describe_origin(rate: Rate) -> str:
    """Say how a rate is known."""
    return f"{rate.origin} rate{f', {rate.note}' if rate.note else ''}"


def _list_traffic(plan: Forecast) -> Iterator[str]:
    flows = plan.work.flows
    if not flows:
        return
    hosts = plan.machine.hosts
    between = ", and by each host to others" if hosts > 1 else ""
    yield f"sent in a step by each rank, as much as it receives{between}"
    for flow in flows:
        out = f"  {format_bytes(flow.sent_between):>12} out" if hosts > 1 else ""
        what = f"{flow.what}, {flow.kind.replace('_', '-')}"
        yield (
            f"  {what:36}{format_bytes(flow.sent):>12}{out}  in {flow.calls:,} call"
            f"{'s' if flow.calls > 1 else ''} of {flow.ranks} ranks"
        )
    out = f"  {format_bytes(plan.work.leaves_host):>12} out" if hosts > 1 else ""
    yield f"  {'together':36}{format_bytes(plan.work.sent):>12}{out}"
    yield ""


def _list_verdict(plan: Forecast) -> Iterator[str]:
    yield "needed, and there"
    for demand in plan.demands:
        there = "unknown" if demand.available is None else format_bytes(demand.available)
        verdict = "" if demand.is_met else "  DOES NOT FIT"
        yield f"  {demand.what:36}{format_bytes(demand.needed):>12}  of {there}{verdict}"
    yield f"  {'one checkpoint':36}{format_bytes(plan.checkpoint_bytes):>12}"
    if plan.time.disk_bytes:
        worn = format_bytes(plan.time.disk_bytes)
        yield f"  {'written to NVMe in each step':36}{worn:>12}  per host: it wears the disk"
    yield ""
    yield "it fits" if plan.fits else "IT DOES NOT FIT"


def describe_plan(plan: Forecast, advice: Sequence[str]) -> dict[str, Any]:
    """Return the plan as plain values, for `--json` and for the record of a run."""
    time = plan.time
    return {
        "parameters": plan.job.architecture.parameters,
        "fits": plan.fits,
        "device_bytes_per_rank": plan.device_bytes_per_rank,
        "host_bytes_per_host": plan.host_bytes_per_host,
        "pinned_bytes_per_rank": plan.pinned_bytes_per_rank,
        "shared_memory_bytes_per_host": plan.shared_memory_bytes_per_host,
        "nvme_bytes_per_host": plan.nvme_bytes_per_host,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "output_bytes": plan.output_bytes,
        "state_bytes": plan.state_bytes,
        "nvme_written_bytes_per_step": time.disk_bytes,
        "sent_bytes_per_step": time.sent_bytes,
        "sent_bytes_between_hosts_per_step": plan.work.leaves_host,
        "traffic": [
            describe_flow(flow, seconds)
            for flow, seconds in zip(plan.work.flows, time.flows, strict=True)
        ],
        "seconds_per_step": time.total,
        "tokens_per_second": time.tokens_per_second,
        "seconds": {
            "compute": time.compute,
            "pcie": time.pcie,
            "optimizer": time.host_optimizer,
            "nvme": time.nvme,
            "network": time.network,
            "overhead": time.overhead,
        },
        "bottleneck": time.bottleneck,
        "largest_micro_batch": find_largest_micro_batch(plan),
        "largest_length": find_largest_length(plan),
        "items": [
            {"name": one.name, "where": one.where, "bytes": one.num_bytes, "phases": one.phases}
            for one in plan.items
        ],
        "demands": [
            {"what": one.what, "needed": one.needed, "available": one.available}
            for one in plan.demands
        ],
        "advice": list(advice),
    }


def describe_flow(flow: Flow, seconds: float) -> dict[str, Any]:
    """Return one kind of collective as plain values; bytes are of a whole step."""
    return {
        "what": flow.what,
        "collective": flow.kind,
        "calls": flow.calls,
        "ranks": flow.ranks,
        "hosts": flow.hosts,
        "bytes": flow.num_bytes,
        "sent_bytes_per_rank": flow.sent,
        "received_bytes_per_rank": flow.sent,
        "sent_bytes_per_host": flow.sent_between,
        "received_bytes_per_host": flow.sent_between,
        "seconds": seconds,
    }

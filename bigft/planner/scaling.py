"""The same run on more hosts: memory, seconds and what limits it, row by row.

    job x numbers of hosts --scale--> Row, Row, ... --render_scaling--> a page

Each row is a forecast of its own; nothing is extrapolated from another row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bigft.planner.forecast import Forecast, forecast
from bigft.planner.job import Job
from bigft.planner.links import list_ways
from bigft.planner.machine import Machine, SliceMeasurement
from bigft.planner.report import describe_origin
from bigft.units import format_bytes, format_count, format_seconds

MOST_HOSTS = 1 << 16

_MOST_ROWS = 64
_DAY = 86_400.0

_NAMES = {
    "compute": "compute",
    "pcie": "PCIe",
    "host_optimizer": "optimizer's step",
    "nvme": "NVMe",
    "network": "network",
    "overhead": "Python",
}


@dataclass(frozen=True)
class Row:
    """The run on so many hosts."""

    hosts: int
    ranks: int
    plan: Forecast | None
    """None: it cannot be."""

    refusal: str = ""
    """Why it cannot be, and what could."""

    efficiency: float = 0.0
    """Tokens per second of a host against those of the run on one host."""

    @property
    def sequences(self) -> int:
        """Of a step, on all ranks."""
        job = self.plan.job if self.plan else None
        return job.micro_batch * job.accumulation * job.ranks if job else 0


def parse_hosts(text: str) -> list[int]:
    """Read numbers of hosts: `8`, `1,2,6`, or `1,2,4,...,64`, where the dots double.

    Raises:
        ValueError: Says what is wrong, and how to write it.
    """
    repair = "write --hosts 4, --hosts 1,2,6 or --hosts 1,2,4,...,64"
    found: list[int] = []
    is_open = False
    for word in (part.strip() for part in text.split(",")):
        if word in ("...", "…"):
            if is_open or not found:
                raise ValueError(f"dots stand between two numbers; {repair}")
            is_open = True
            continue
        if not (word.isdecimal() and word.isascii()) or not 0 < int(word) <= MOST_HOSTS:
            raise ValueError(f"{word!r} is no number from 1 to {MOST_HOSTS}; {repair}")
        number = int(word)
        if is_open:
            found += _double(found, number, repair)
        elif found and number <= found[-1]:
            raise ValueError(f"{number} is not above {found[-1]}; {repair}")
        else:
            found.append(number)
        is_open = False
    if is_open:
        raise ValueError(f"nothing stands behind the dots; {repair}")
    if len(found) > _MOST_ROWS:
        raise ValueError(f"{len(found)} numbers, and at most {_MOST_ROWS} fit on a page")
    return found


def _double(before: Sequence[int], last: int, repair: str) -> list[int]:
    if len(before) > 1 and before[-1] != 2 * before[-2]:
        raise ValueError(f"{before[-2]},{before[-1]},... is not doubled, as dots mean; {repair}")
    found = [2 * before[-1]]
    while found[-1] < last:
        found.append(2 * found[-1])
    if found[-1] != last:
        raise ValueError(f"doubling {before[-1]} does not come to {last}; {repair}")
    return found


def scale(
    job: Job,
    machine: Machine,
    hosts: Sequence[int],
    *,
    keeps_batch: bool = False,
    measured: SliceMeasurement | None = None,
) -> list[Row]:
    """Plan a run on each number of hosts.

    Args:
        job: As it is on `machine.hosts` hosts.
        machine: One of the hosts, as many times as the run is written for.
        hosts: Numbers of them.
        keeps_batch: Divide the sequences of a step of the first row among the ranks, instead of
            giving each rank as many.
        measured: Layers of this model on this machine.
    """
    total = job.micro_batch * job.accumulation * machine.ranks_per_host * hosts[0]
    one = _divide(job, total, machine.ranks_per_host) if keeps_batch else job
    alone = _plan(job if isinstance(one, str) else one, machine, 1, measured)
    rows = []
    for number in hosts:
        ranks = number * machine.ranks_per_host
        divided: Job | str = _divide(job, total, ranks) if keeps_batch else job
        if isinstance(divided, str):
            rows.append(Row(number, ranks, None, divided))
            continue
        plan = _plan(divided, machine, number, measured)
        share = plan.time.tokens_per_second / number / alone.time.tokens_per_second
        rows.append(Row(number, ranks, plan, efficiency=share))
    return rows


def _plan(job: Job, machine: Machine, hosts: int, measured: SliceMeasurement | None) -> Forecast:
    there = replace(machine, hosts=hosts)
    return forecast(replace(job, ranks=there.ranks), there, measured)


def _divide(job: Job, total: int, ranks: int) -> Job | str:
    """Give each rank its part of a step, in micro-batches that are not larger than before."""
    share, rest = divmod(total, ranks)
    if rest or not share:
        most = max(n for n in range(1, ranks + 1) if total % n == 0)
        return f"{total} sequences of a step cannot be divided among {ranks} ranks; {most} can"
    micro = max(n for n in range(1, min(job.micro_batch, share) + 1) if share % n == 0)
    return replace(job, micro_batch=micro, accumulation=share // micro)


def render_scaling(
    rows: Sequence[Row], title: Sequence[str], tokens: float, *, keeps_batch: bool
) -> str:
    """Return the page.

    Args:
        rows: What was planned.
        title: What was planned, line by line.
        tokens: How many the time for the data is of.
        keeps_batch: Whether the sequences of a step were kept.
    """
    first = next(row.plan for row in rows if row.plan)
    is_on_cpu = first.job.is_on_cpu
    unit = "ranks" if is_on_cpu else "GPUs"
    device = "" if is_on_cpu else f"{'per GPU':>11}"
    lines = [
        *title,
        "",
        f"{'hosts':>6}{unit:>7}{'sequences':>11}{device}{'per host':>11}{'step':>8}"
        f"{'tokens/s':>10}{'efficiency':>12}{f'{format_count(tokens)} tokens':>14}  limit",
    ]
    lines += [_render_row(row, tokens, is_on_cpu=is_on_cpu) for row in rows]
    return "\n".join([*lines, "", *_list_assumptions(first, keeps_batch=keeps_batch)]) + "\n"


def _render_row(row: Row, tokens: float, *, is_on_cpu: bool) -> str:
    if row.plan is None:
        return f"{row.hosts:>6}{row.ranks:>7}  {row.refusal}"
    plan, time = row.plan, row.plan.time
    device = "" if is_on_cpu else f"{format_bytes(plan.device_bytes_per_rank):>11}"
    limit = _NAMES[time.bottleneck]
    lacks = [demand.what for demand in plan.demands if not demand.is_met]
    if lacks:
        limit = f"DOES NOT FIT: {', '.join(lacks)}"
    return (
        f"{row.hosts:>6}{row.ranks:>7}{row.sequences:>11,}{device}"
        f"{format_bytes(plan.host_bytes_per_host):>11}{format_seconds(time.total):>8}"
        f"{format_count(time.tokens_per_second):>10}{row.efficiency:>11.0%} "
        f"{_format_long(tokens / time.tokens_per_second):>14}  {limit}"
    )


def _format_long(seconds: float) -> str:
    return f"{seconds / _DAY:,.1f} days" if seconds >= _DAY else format_seconds(seconds)


def _list_assumptions(plan: Forecast, *, keeps_batch: bool) -> Iterator[str]:
    rates, is_gpu = plan.machine.rates, not plan.job.is_on_cpu
    yield "what this rests on"
    for name, rate, unit in (
        ("products of matrices, each rank", rates.matrix, "TFLOP/s"),
        ("inside a host, each rank and way", rates.peer, "GB/s"),
        ("between hosts, each host and way", rates.network, "GB/s"),
    ):
        number = rate.per_second / (1e12 if unit == "TFLOP/s" else 1e9)
        yield f"  {name:36}{number:>8,.1f} {unit:8}{describe_origin(rate)}"
    kind = "by the figures that NCCL chooses by" if is_gpu else "over TCP"
    yield f"  collectives: rings of all ranks, or trees for sums of GPUs, {kind};"
    ways = [way for way in list_ways(plan.machine) if not way.is_tree]
    inside, between = ([getattr(way, name) for way in ways] for name in ("inside", "between"))
    yield (
        f"  each call takes its hops too: {_span(inside)} us inside a host, {_span(between)} us"
        " between two"
    )
    if is_gpu:
        yield "  at the same time: computing, PCIe, network and NVMe; then the optimizer's step"
    else:
        yield "  one after the other: computing, copies, network, the optimizer's step"
    yield "  not in it: other jobs on the network, switches too narrow for all hosts, late hosts,"
    yield "  failures and restarts; nothing here was measured on more than one host"
    if keeps_batch:
        yield "  the sequences of a step stay those of the first row (--scale global_batch)"
    else:
        yield "  each rank has as many sequences, so a step learns from more of them on more hosts"
    yield "  efficiency: tokens per second of each host against one host with these settings,"
    yield "  which are the same in every row: another number of hosts may be better off with others"


def _span(seconds: Sequence[float]) -> str:
    low, high = (1e6 * find(seconds) for find in (min, max))
    return f"{low:.3g}" if low == high else f"{low:.3g}-{high:.3g}"


def describe_scaling(rows: Sequence[Row], tokens: float) -> dict[str, Any]:
    """Return the table as plain values, for `--json`."""
    rates = next(row.plan.machine.rates for row in rows if row.plan)
    known = {"matrix": rates.matrix, "peer": rates.peer, "network": rates.network}
    return {
        "tokens": tokens,
        "rates": {
            name: {"per_second": rate.per_second, "origin": rate.origin, "note": rate.note}
            for name, rate in known.items()
        },
        "rows": [_describe_row(row, tokens) for row in rows],
    }


def _describe_row(row: Row, tokens: float) -> dict[str, Any]:
    found: dict[str, Any] = {"hosts": row.hosts, "ranks": row.ranks, "refusal": row.refusal}
    if row.plan is None:
        return found
    plan, time = row.plan, row.plan.time
    return found | {
        "fits": plan.fits,
        "sequences_per_step": row.sequences,
        "micro_batch": plan.job.micro_batch,
        "accumulation": plan.job.accumulation,
        "device_bytes_per_rank": plan.device_bytes_per_rank,
        "host_bytes_per_host": plan.host_bytes_per_host,
        "sent_bytes_per_step": time.sent_bytes,
        "sent_bytes_between_hosts_per_step": plan.work.leaves_host,
        "seconds_per_step": time.total,
        "network_seconds": time.network,
        "tokens_per_second": time.tokens_per_second,
        "efficiency": row.efficiency,
        "bottleneck": time.bottleneck,
        "seconds_for_tokens": tokens / time.tokens_per_second,
    }

"""The network between hosts, measured by ranks that add numbers, and kept for plans."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from bigft.doctor.answers import read_sums
from bigft.doctor.finding import Finding, failed, passed
from bigft.doctor.meeting import place_environment
from bigft.launch.child import Answer
from bigft.launch.hostfile import Host
from bigft.launch.remote import ask_there
from bigft.planner.networks import Network, save_network

_MEETING_SECONDS = 40.0
_SLOW_NETWORK = 10e6
_MOST_RANKS = 64
"""In all: each knows every other one. Of more hosts so many meet, from the first to the last."""

_MOST_ON_HOST = 8

_MODULE = "bigft.doctor.meeting"

Facts = Mapping[str, Mapping[str, Any]]
"""Of each host, by its name: what `bigft.doctor.probe` says."""


def measure_between(hosts: Sequence[Host], facts: Facts) -> Iterator[Finding]:
    """Let ranks of every host add numbers with the others, by gloo and, between GPUs, by NCCL.

    Args:
        hosts: Two or more, all of them reached. Of more than 64 some meet.
        facts: What they said of themselves.
    """
    hosts = choose_meeting(hosts)
    first, second = hosts[0].name, hosts[1].name
    if "error" in facts[first]["routes"][second]:
        return
    yield from _measure(hosts, facts, "gloo", "all_reduce")
    if all(facts[host.name].get("gpus", 0) >= host.slots for host in hosts):
        yield from _measure(hosts, facts, "nccl", "all_reduce_gpus")


def count_meeting(hosts: Sequence[Host]) -> int:
    """Count the ranks of each host that meet: as many as the run has there, where that is cheap."""
    of_all = min(host.slots for host in hosts)
    return max(1, min(of_all, _MOST_ON_HOST, _MOST_RANKS // len(hosts)))


def choose_meeting(hosts: Sequence[Host]) -> list[Host]:
    """Choose the hosts that meet: all, or some that lie evenly between the first and the last."""
    count = min(len(hosts), _MOST_RANKS)
    return [hosts[place * (len(hosts) - 1) // max(count - 1, 1)] for place in range(count)]


def _measure(hosts: Sequence[Host], facts: Facts, backend: str, name: str) -> Iterator[Finding]:
    first, second = hosts[0].name, hosts[1].name
    local = count_meeting(hosts)
    address = facts[first]["routes"][second]["address"]

    def meet(host: Host) -> Answer:
        number = hosts.index(host)
        interface = facts[host.name]["routes"][first if number else second].get("interface", "")
        size, port = local * len(hosts), facts[first]["free_port"]
        environ = place_environment(number * local, size, address, port, 0)
        environ |= {"LOCAL_SIZE": str(local), "BIGFT_MEETING_BACKEND": backend}
        if interface:
            environ |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
        words = ["-m", _MODULE, "--several", str(local)]
        return ask_there(host.name, words, _MEETING_SECONDS, environ)

    # All at once: each waits for all others.
    with ThreadPoolExecutor(len(hosts)) as pool:
        answers = list(pool.map(meet, hosts))
    bad = {h.name: a for h, a in zip(hosts, answers, strict=True) if a.code != 0}
    for host, answer in bad.items():
        end = "did not end in time" if answer.code is None else answer.last_words
        yield replace(failed(name, end, _WHY_MEET, _REPAIR_MEET), host=host)
    if bad:
        return
    try:
        rate, seconds = read_sums(answers[0].last_line)
    except ValueError as error:
        why = f"its answer has {error}"
        yield replace(failed(name, why, _WHY_MEET, _REPAIR_MEET), host=first)
    else:
        found = Network(
            hosts=tuple(host.name for host in hosts),
            ranks_per_host=local,
            backend=backend,
            interface=facts[first]["routes"][second].get("interface", ""),
            bytes_per_second=rate,
            small_sum_seconds=seconds,
            when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        yield replace(_judge(found, name), host=first)


_WHY_MEET = "every step of a run waits for such sums"
_REPAIR_MEET = "see what a firewall lets through between the hosts: ranks use ports above 1024"


def _judge(found: Network, name: str) -> Finding:
    """Keep what was measured, and say it."""
    ranks = found.ranks_per_host
    on_each = f", {ranks} ranks on each" if ranks > 1 else ""
    text = (
        f"{len(found.hosts)} hosts{on_each}: {found.bytes_per_second / 1e6:,.0f} MB/s each way,"
        f" {found.small_sum_seconds * 1e3:.2f} ms for a small sum ({found.backend})"
    )
    try:
        # Two names of one host have no network between them.
        if found.interface != "lo":
            save_network(found)
    except OSError as error:
        text += f"; not kept for plans: {error}"
    if found.bytes_per_second >= _SLOW_NETWORK:
        return passed(name, text)
    return failed(
        name,
        text,
        "stage 3 moves every weight through the network twice per step",
        "choose the fast network: GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME; `bigft plan` says"
        " what waits less for it",
    )

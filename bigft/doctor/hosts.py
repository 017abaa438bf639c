"""Every host of a hostfile: reached, examined, compared, and the network between them measured."""

import json
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from bigft.doctor.answers import read_facts, read_report
from bigft.doctor.finding import Finding, failed, passed, skipped
from bigft.doctor.network import measure_between
from bigft.doctor.probe import RENDEZVOUS_PORT
from bigft.errors import PlanError
from bigft.launch.child import Answer
from bigft.launch.hostfile import Host
from bigft.launch.remote import ask_there

_PROBE_SECONDS = 20.0
_EXAMINE_SECONDS = 180.0
_MAX_SKEW = 5.0
_AT_ONCE = 64

# A command line with settings in it may have secrets in it, and every user of a host can see the
# command lines there: it comes by standard input.
_READ_WORDS = "import json, sys; from bigft.cli import main; main(json.load(sys.stdin))"

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Probed:
    """What a host said of itself."""

    facts: Mapping[str, Any]
    """As `probe.describe_host` gives it."""

    skew: float
    """Seconds that its clock is certainly ahead of this one's, or behind it if negative."""


def examine_hosts(
    hosts: Sequence[Host],
    words: Callable[[Host], list[str]],
    world_size: int,
    *,
    probed: Mapping[str, Probed] | None = None,
    measure_network: bool = True,
    compare_settings: bool = True,
) -> list[Finding]:
    """Look at every host at once.

    Args:
        hosts: From a hostfile.
        words: The command line of the doctor that a host is to run, as JSON to its standard output.
        world_size: Ranks on all hosts.
        probed: What they have said a moment ago, by name; absent: they are asked.
        measure_network: Let the hosts exchange numbers, if all of them are there.
        compare_settings: False where every host chooses some itself, and the first one decides.
    """
    findings: list[Finding] = []
    if probed is None:
        probed, findings = probe_hosts(hosts)
    there = [host for host in hosts if host.name in probed]
    reports = _on_all(there, lambda host: _examine(host, words(host), world_size))
    digests: dict[str, Any] = {}
    for host, (found, digest) in zip(there, reports, strict=True):
        findings += [replace(finding, host=host.name) for finding in found]
        if digest is not None:
            digests[host.name] = digest
    findings += compare(probed, digests if compare_settings else {})
    if measure_network and len(there) == len(hosts) > 1:
        findings += measure_between(there, {name: its.facts for name, its in probed.items()})
    return findings


def probe_hosts(hosts: Sequence[Host]) -> tuple[dict[str, Probed], list[Finding]]:
    """Ask every host at once what it is; a few seconds, nothing heavy is imported there.

    Returns:
        What those say that answer, by name, and a finding for each of the others.
    """
    names = [host.name for host in hosts]
    answers = _on_all(hosts, lambda host: _probe(host, names))
    pairs = list(zip(names, answers, strict=True))
    findings = [replace(a, host=name) for name, a in pairs if isinstance(a, Finding)]
    return {name: a for name, a in pairs if isinstance(a, Probed)}, findings


def _on_all(hosts: Sequence[Host], call: Callable[[Host], ResultT]) -> list[ResultT]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(call, hosts))


def _probe(host: Host, names: Sequence[str]) -> Probed | Finding:
    before = time.time()
    answer = ask_there(host.name, ["-m", "bigft.doctor.probe", *names], _PROBE_SECONDS)
    after = time.time()
    try:
        facts = read_facts(answer.last_line, names)
    except ValueError as error:
        return explain_unreachable(host.name, answer, str(error))
    # It looked at its clock at some moment in between.
    ahead, behind = facts["time"] - after, facts["time"] - before
    return Probed(facts, ahead if ahead > 0 else min(behind, 0.0))


def explain_unreachable(host: str, answer: Answer, wrong: str = "") -> Finding:
    """Say why a host did not answer as it should.

    Args:
        host: Which one.
        answer: What it said.
        wrong: Why that cannot be read.
    """
    said = answer.last_words
    repair = f"ssh -o BatchMode=yes -- {host} true   has to work without a question"
    if answer.code is None:
        return failed("ssh", f"{host} did not answer in {_PROBE_SECONDS:.0f} s", _WHY_SSH, repair)
    if answer.code == 255:
        return failed("ssh", said, _WHY_SSH, f"{repair} (ssh-copy-id, ssh-keyscan, ~/.ssh/config)")
    if "cd:" in answer.err or answer.code in (126, 127) or "No module named" in answer.err:
        return failed(
            "paths",
            said,
            "a run starts the same interpreter in the same folder on every host",
            "have the code and the environment under the same paths there (a shared folder, or"
            " rsync -a)",
        )
    if answer.code == 0 and answer.last_line.startswith("{"):
        folder = shlex.quote(str(Path.cwd()))
        return failed(
            "code", f"its answer has {wrong}", _WHY_CODE, _COPY_CODE.format(folder=folder)
        )
    return failed("ssh", f"exit code {answer.code}: {said}", _WHY_SSH, repair)


_WHY_CODE = "ranks with other code do other things at the same step, and wait for each other"
_COPY_CODE = (
    "rsync -a --delete {folder}/ HOST:{folder}/   or: git checkout of the same commit there"
)
_WHY_SSH = "the launcher starts the ranks of every host over ssh, and asks nobody anything"


def _examine(host: Host, words: list[str], world_size: int) -> tuple[list[Finding], str | None]:
    """Let the doctor run there; returns its findings and the digest of the settings."""
    environ = {"WORLD_SIZE": str(world_size)}
    answer = ask_there(host.name, ["-c", _READ_WORDS], _EXAMINE_SECONDS, environ, json.dumps(words))
    try:
        return read_report(answer.last_line)
    except ValueError:
        end = "did not end in time" if answer.code is None else answer.last_words
        if answer.code == PlanError.exit_code:
            why, repair = "it would not begin there", "free memory there, or leave this host out"
            return [failed("plan", end, why, repair, "space")], None
        found = failed(
            "settings",
            end,
            "the same command has to be understood on every host",
            "have the files that it names under the same paths there",
            "settings",
        )
        return [found], None


# What has to be the same.


def compare(probed: Mapping[str, Probed], digests: Mapping[str, str]) -> Iterator[Finding]:
    """Compare what hosts said of themselves."""
    if not probed:
        return
    facts = {name: host.facts for name, host in probed.items()}
    yield from _compare_values(
        "code",
        {name: fact["code"] for name, fact in facts.items()},
        _WHY_CODE,
        _COPY_CODE,
        facts,
    )
    yield from _compare_values(
        "paths",
        {name: f"{fact['bigft']} by {fact['executable']}" for name, fact in facts.items()},
        "the launcher starts the same paths on every host",
        "remove the other installation there, or put this one first (PYTHONPATH)",
        facts,
    )
    yield from _compare_values(
        "versions",
        {name: _describe_versions(fact) for name, fact in facts.items()},
        "other versions compute, save and name things in other ways",
        "{executable} -m pip install -c constraints.txt bigft   on the hosts that differ",
        facts,
    )
    yield from _compare_values(
        "settings",
        digests,
        "ranks that are told other things wait for each other, or train something else",
        "copy the JSON, the recipe and the model's config.json to the same paths there",
        facts,
    )
    yield from _judge_clocks(probed)
    yield from _judge_routes(facts)


def _describe_versions(facts: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return f"Python {facts['python']}, {packages}"


def _compare_values(
    name: str,
    values: Mapping[str, str],
    why: str,
    repair: str,
    facts: Mapping[str, Mapping[str, Any]],
) -> Iterator[Finding]:
    """Compare with what most hosts have, or the first ones."""
    if not values:
        return
    usual = Counter(values.values()).most_common(1)[0][0]
    for host, value in values.items():
        if value == usual:
            yield replace(passed(name, usual), host=host)
        else:
            mine, other = _differing(value, usual)
            # A command to be copied, with words that another host has said.
            words = {key: shlex.quote(str(word)) for key, word in facts[host].items()}
            finding = failed(name, f"{mine}, elsewhere {other}", why, repair.format(**words))
            yield replace(finding, host=host)


def _differing(value: str, usual: str) -> tuple[str, str]:
    """Return only the parts of two lists that differ."""
    mine, other = value.split(", "), usual.split(", ")
    only = ", ".join(part for part in mine if part not in other)
    missing = ", ".join(part for part in other if part not in mine)
    return only or "nothing", missing or "nothing"


def _judge_clocks(probed: Mapping[str, Probed]) -> Iterator[Finding]:
    for host, its in probed.items():
        # Against the middle of all: the clock that is wrong may be this host's own.
        others = sorted(other.skew for other in probed.values())
        skew = its.skew - others[(len(others) - 1) // 2]
        if abs(skew) < _MAX_SKEW:
            found = passed("clock_skew", f"within {_MAX_SKEW:.0f} s of the others")
        else:
            found = failed(
                "clock_skew",
                f"{abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} the others",
                "what is newest on a shared folder, and whether a lock is old, is judged by clocks",
                "timedatectl set-ntp true   (or: chronyc makestep)",
            )
        yield replace(found, host=host)


def _judge_routes(facts: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    for host, its in facts.items():
        routes = {peer: route for peer, route in its["routes"].items() if peer != host}
        yield replace(_judge_route(host, its["routes"].get(host, {}), routes), host=host)
    first = next(iter(facts))
    if facts[first]["is_port_free"]:
        found = passed("rendezvous_port", f"{RENDEZVOUS_PORT} is free")
    else:
        found = failed(
            "rendezvous_port",
            f"{RENDEZVOUS_PORT} is in use",
            "the ranks of all hosts meet there",
            f"deepspeed --master_port {facts[first]['free_port']} ...",
        )
    yield replace(found, host=first)


def _judge_route(
    host: str, own: Mapping[str, str], routes: Mapping[str, Mapping[str, str]]
) -> Finding:
    lost = {peer: route["error"] for peer, route in routes.items() if "error" in route}
    if lost:
        peer, error = next(iter(lost.items()))
        return failed(
            "network_interface",
            f"{peer} is not reached: {error}",
            "every rank talks to ranks of every host",
            f"add {peer} to /etc/hosts, or write IP addresses into the hostfile",
        )
    own_address = own.get("peer_address", "")
    if routes and own_address.startswith("127.") and not host.startswith("127."):
        return failed(
            "network_interface",
            f"{host} is {own_address} to itself",
            "the rank that others look for would listen where only its own host reaches it",
            f"give {host} its real address in /etc/hosts there",
        )
    names = sorted({route["interface"] for route in routes.values()})
    if not names:
        return skipped("network_interface", "there is no other host")
    joined = ", ".join(names)
    hint = f" (GLOO_SOCKET_IFNAME={joined})" if len(names) == 1 else ""
    return passed("network_interface", f"{joined}{hint}")

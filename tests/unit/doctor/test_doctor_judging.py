"""What is made of what was read: versions, operators, hosts, clocks; and the page."""

import runpy
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import setuptools

from bigft.config.options import DoctorOptions
from bigft.doctor import examine as examining
from bigft.doctor.examine import AREAS, examine
from bigft.doctor.finding import ERRORS, describe_finding, failed, find_worst, passed, skipped
from bigft.doctor.hosts import Probed, compare, explain_unreachable
from bigft.doctor.need import Need
from bigft.doctor.probe import describe_host
from bigft.doctor.report import render_findings
from bigft.doctor.storage import Place, check_space, find_file_system
from bigft.doctor.tools import _judge_operators
from bigft.doctor.versions import FLOORS, TESTED, is_below
from bigft.doctor.wanted import Wanted
from bigft.errors import ConfigError, LaunchError, PlanError
from bigft.launch.child import Answer, ask
from bigft.launch.remote import render_ssh

ROOT = Path(__file__).resolve().parents[3]


def test_floors_are_those_of_the_package(monkeypatch):
    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: given.update(options))
    runpy.run_path(str(ROOT / "setup.py"))
    wanted = dict(line.split(">=") for line in given["install_requires"] if ">=" in line)
    assert wanted == FLOORS


def test_tested_versions_are_the_pinned_ones():
    pins = [line.partition(";")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pinned = dict(line.split("==") for line in pins if "==" in line)
    assert {name: pinned[name] for name in TESTED} == TESTED


@pytest.mark.parametrize(
    ("version", "floor", "answer"),
    [
        ("2.9.1", "2.10", True),
        ("2.10.0+cpu", "2.10", False),
        ("2.10", "2.10.0", False),
        ("5.17.0.dev0", "5.17", False),
        ("0.19.10", "0.19.8", False),
        ("0.9", "0.19.8", True),
        ("1!3", "6", True),
    ],
)
def test_versions_are_compared_as_numbers(version, floor, answer):
    assert is_below(version, floor) is answer


def test_every_area_can_be_asked_for():
    literal = DoctorOptions.model_json_schema()["properties"]["checks"]["items"]["enum"]
    assert [*AREAS, "network"] == literal


# --- Operators ---

ASKED = Wanted(is_of_run=True, builders=("CPUAdamBuilder", "AsyncIOBuilder"))


def _state(state: str, **facts: str) -> dict[str, str]:
    return {"state": state, "path": "/ext/op/op.so", "error": "", **facts}


def test_an_operator_that_ends_the_process_is_named():
    states = {"CPUAdamBuilder": _state("loads"), "AsyncIOBuilder": _state("loading")}
    finding = _judge_operators(ASKED, states, -4, "")
    assert not finding.ok
    assert "AsyncIO ended the process (exit -4)" in finding.found
    assert "rm -r /ext/op" in finding.repair


def test_an_operator_that_does_not_load_says_why():
    states = {
        "CPUAdamBuilder": _state("broken", error="undefined symbol: x"),
        "AsyncIOBuilder": _state("loads"),
    }
    assert (
        "CPUAdam does not load: undefined symbol: x" in _judge_operators(ASKED, states, 0, "").found
    )


def test_deepspeed_that_cannot_be_imported_is_a_fault():
    finding = _judge_operators(ASKED, {}, 1, "ImportError: no such thing")
    assert not finding.ok
    assert "no such thing" in finding.found


def test_operators_that_nobody_asked_for_may_be_missing():
    states = {name: _state("missing") for name in ASKED.builders}
    assert not _judge_operators(ASKED, states, 0, "").ok
    general = _judge_operators(replace(ASKED, is_of_run=False), states, 0, "")
    assert general.ok
    assert not general.applies


# --- Need ---


def test_space_is_compared_with_the_need_where_it_is_known(tmp_path):
    place = Place("run_folder", tmp_path / "not/yet/there", "--output_dir")
    assert check_space(place, "run_folder_space", 1).ok
    finding = check_space(place, "run_folder_space", 1 << 60)
    assert (finding.ok, finding.fault) == (False, "space")
    assert "1024.00 PiB needed" in finding.found


def test_memory_is_compared_with_the_need_where_it_is_known():
    need = Need(host_bytes=1 << 60, shared_memory_bytes=1 << 60)
    found = {f.name: f for f in AREAS["memory"][0](Wanted(need=need))}
    assert [found[name].ok for name in ("host_memory", "shared_memory")] == [False, False]
    assert find_worst(found.values()) is PlanError


def test_the_kind_of_a_file_system_is_the_innermost_mount():
    assert find_file_system(Path("/proc/self")) == "proc"
    assert find_file_system(Path("/sys")) == "sysfs"


# --- Time limits ---


def test_a_program_that_hangs_is_ended_with_its_children():
    start = time.monotonic()
    answer = ask(["sh", "-c", "sleep 100 & sleep 100"], 0.3)
    assert answer.code is None
    assert time.monotonic() - start < 5


def test_a_check_that_hangs_is_a_finding_and_holds_nothing_up(monkeypatch):
    def check_stuck(wanted):
        yield passed("first", "seen")
        time.sleep(60)

    monkeypatch.setattr(examining, "AREAS", {"cpu": (check_stuck,)})
    monkeypatch.setattr(examining, "_SECONDS", 0.2)
    start = time.monotonic()
    findings = examine(Wanted())
    assert time.monotonic() - start < 5
    assert [(f.name, f.ok) for f in findings] == [("first", True), ("stuck", False)]


def test_what_cannot_be_looked_at_is_no_fault_but_a_bug_is_seen(monkeypatch):
    def check_closed(wanted):
        raise PermissionError(13, "Permission denied", "/proc/x")
        yield

    def check_bug(wanted):
        raise ZeroDivisionError
        yield

    monkeypatch.setattr(examining, "AREAS", {"cpu": (check_closed,)})
    (finding,) = examine(Wanted())
    assert (finding.ok, finding.applies) == (True, False)
    assert "/proc/x" in finding.found
    monkeypatch.setattr(examining, "AREAS", {"cpu": (check_bug,)})
    with pytest.raises(ZeroDivisionError):
        examine(Wanted())


# --- Hosts ---


def _probed(skew: float = 0.0, **changes: object) -> Probed:
    facts = {**describe_host([]), "is_port_free": True, **changes}
    return Probed(facts, skew)


def _faults(probed: dict[str, Probed], digests: dict[str, str] | None = None) -> list[tuple]:
    found = compare(probed, digests or dict.fromkeys(probed, "same"))
    return [(f.name, f.host, f.found) for f in found if not f.ok]


def test_equal_hosts_have_no_faults():
    assert _faults({"a": _probed(), "b": _probed(), "c": _probed()}) == []


def test_the_odd_one_out_is_named():
    hosts = {"a": _probed(code="x"), "b": _probed(code="y"), "c": _probed(code="x")}
    assert _faults(hosts) == [("code", "b", "y, elsewhere x")]


def test_only_versions_that_differ_are_shown():
    versions = describe_host([])["versions"]
    hosts = {"a": _probed(), "b": _probed(), "c": _probed(versions={**versions, "scipy": "9"})}
    assert _faults(hosts) == [("versions", "c", f"scipy 9, elsewhere scipy {versions['scipy']}")]


def test_a_clock_is_compared_with_those_of_the_others():
    assert _faults({"a": _probed(), "b": _probed(4.9)}) == []
    ((name, host, found),) = _faults({"a": _probed(), "b": _probed(-60), "c": _probed()})
    assert (name, host) == ("clock_skew", "b")
    assert "60 s behind" in found
    # This host's own clock is wrong: all others are off by the same, and agree.
    assert _faults({"a": _probed(3600), "b": _probed(3600.2), "c": _probed(3599.8)}) == []


def test_a_name_that_is_the_loopback_to_its_own_host():
    own = {"address": "127.0.1.1", "peer_address": "127.0.1.1", "interface": "lo"}
    other = {"address": "10.0.0.1", "peer_address": "10.0.0.2", "interface": "eth0"}
    hosts = {
        "a": _probed(routes={"a": own, "b": other}),
        "b": _probed(routes={"b": other, "a": other}),
    }
    assert _faults(hosts) == [("network_interface", "a", "a is 127.0.1.1 to itself")]


def test_a_name_that_is_not_known_on_another_host():
    routes = {"a": {"error": "Name or service not known"}}
    ((name, host, found),) = _faults({"a": _probed(), "b": _probed(routes=routes)})
    assert (name, host) == ("network_interface", "b")
    assert "a is not reached" in found


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (Answer(None), "ssh"),
        (Answer(255, err="Permission denied (publickey)."), "ssh"),
        (Answer(1, err="sh: 1: cd: can't cd to /x"), "paths"),
        (Answer(127, err="env: '/x/python': No such file or directory"), "paths"),
        (Answer(1, err="/x/python: No module named bigft"), "paths"),
    ],
)
def test_why_a_host_does_not_answer(answer, name):
    finding = explain_unreachable("a", answer)
    assert (finding.name, finding.ok) == (name, False)


def test_nothing_in_a_command_is_read_by_a_shell():
    evil = "x;touch${IFS}here $(id) 'y'"
    command = render_ssh("::1", ["python", evil], {"NCCL_DEBUG": evil}, Path("/a b"))
    assert command[-3:-1] == ["--", "::1"]
    words = shlex.split(command[-1])
    assert words == ["cd", "/a b", "&&", "exec", "env", f"NCCL_DEBUG={evil}", "python", evil]
    script = "import sys; sys.stdout.write(sys.argv[1])"
    here = render_ssh("a", [sys.executable, "-c", script, evil], {}, Path("/"))
    assert ask(["sh", "-c", here[-1]], 20).out == evil


# --- The page and the exit code ---


def test_the_first_kind_of_fault_decides_the_exit_code():
    faults = {kind: failed("x", "", "", "", kind) for kind in ("settings", "host", "space")}
    assert find_worst([passed("x", "")]) is None
    assert find_worst([faults["settings"]]) is ConfigError
    assert find_worst([faults["settings"], faults["host"]]) is LaunchError
    assert find_worst(faults.values()) is PlanError
    assert [error.exit_code for error in ERRORS.values()] == [4, 6, 2]


def test_hosts_on_which_all_is_well_share_a_line():
    findings = [replace(passed("cores", "8"), host=name) for name in "abc"]
    findings += [replace(passed("swap", v), host=h) for h, v in (("a", "none"), ("b", "1 GiB"))]
    findings.append(replace(failed("swap", "9 GiB", "slow", "swapoff -a"), host="c"))
    findings.append(skipped("gpu", "none"))
    assert render_findings(findings).splitlines() == [
        "ok    cores  3 hosts: 8",
        "FAIL  swap   c: 9 GiB",
        "ok    swap   2 hosts: none, and 1 other value",
        "-     gpu    none",
        "",
        "1. swap on c: 9 GiB",
        "   why     slow",
        "   repair  swapoff -a",
        "",
        "1 of 6 checks failed",
    ]


def test_the_contract_of_the_json_is_kept():
    assert {"name", "ok", "found", "why", "repair"} <= describe_finding(passed("a", "b")).keys()

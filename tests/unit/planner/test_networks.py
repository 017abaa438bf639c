"""What the doctor has measured between hosts, and what a plan makes of it."""

import json
from dataclasses import replace

import pytest

from bigft.planner.hardware import Given, parse_machine, read_machine
from bigft.planner.links import time_flow
from bigft.planner.machine import Hop
from bigft.planner.networks import Network, find_network, find_networks_file, save_network
from bigft.planner.report import describe_origin
from bigft.planner.traffic import Flow
from tests.support.plan_models import make_machine

FOUND = Network(("w1", "w2"), 2, "gloo", "eth0", 812e6, 0.0008, "2026-11-22T10:00:00+00:00")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def test_what_was_measured_last_is_found():
    assert find_network("gloo") is None
    save_network(FOUND)
    save_network(replace(FOUND, hosts=("w1", "w3"), when="2026-11-21T10:00:00+00:00"))
    assert find_network("gloo") == FOUND
    assert find_network("nccl") is None
    newer = replace(FOUND, hosts=("w2", "w1"), when="2026-11-23T10:00:00+00:00")
    save_network(newer)
    assert find_network("gloo") == newer
    # The same hosts once, in whichever order.
    assert len(json.loads(find_networks_file().read_text())["networks"]) == 2


def test_old_networks_are_forgotten():
    for number in range(40):
        save_network(replace(FOUND, hosts=("a", str(number)), when=f"2026-11-22T10:{number:02d}"))
    rows = json.loads(find_networks_file().read_text())["networks"]
    assert len(rows) == 32
    assert rows[-1]["hosts"] == ["a", "39"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": 9}',
        '{"format": 1, "networks": [{}]}',
        '{"format": 1, "networks": [null]}',
        '{"format": 1, "networks": 3}',
    ],
)
def test_what_cannot_be_read_is_as_good_as_none(text, caplog):
    find_networks_file().parent.mkdir(parents=True)
    find_networks_file().write_text(text)
    assert find_network("gloo") is None
    save_network(FOUND)
    assert find_network("gloo") == FOUND


@pytest.mark.parametrize(
    "changes",
    [
        {"bytes_per_second": 0.0},
        {"bytes_per_second": float("nan")},
        {"small_sum_seconds": -1.0},
        {"hosts": ("w1",)},
        {"ranks_per_host": 0},
    ],
)
def test_a_network_that_cannot_be_is_not_believed(changes):
    save_network(replace(FOUND, **changes))
    assert find_network("gloo") is None


def test_a_plan_for_several_hosts_uses_it_and_a_flag_wins(tmp_path):
    save_network(FOUND)
    rates = read_machine(output_dir=tmp_path, hosts=2, ranks=2).rates
    assert rates.network.per_second == 812e6
    said = describe_origin(rates.network)
    assert said == "measured rate, 2026-11-22 between w1, w2 (gloo over eth0)"
    given = parse_machine(Given(hosts=2, network="1GB"), output_dir=tmp_path, ranks=2)
    assert describe_origin(given.rates.network) == "given rate"
    alone = read_machine(output_dir=tmp_path, ranks=2).rates
    assert "w1" not in describe_origin(alone.network)
    assert alone.hop is None
    other = parse_machine(Given(gpus="2x24GB", hosts=2), output_dir=tmp_path)
    assert describe_origin(other.rates.network) == "typical rate"


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("seconds", [0.002, 0.05])
def test_the_hop_gives_back_the_small_sum_that_was_measured(ranks, seconds):
    found = replace(FOUND, hosts=("a", "b", "c"), ranks_per_host=ranks, small_sum_seconds=seconds)
    machine = make_machine(ranks, 3, "cpu")
    machine = replace(machine, rates=replace(machine.rates, hop=found.hop))
    one = Flow("a number", "all_reduce", 1, 4, 3 * ranks, 3)
    assert time_flow(one, machine) == pytest.approx(seconds, rel=0.01)


def test_a_hop_is_never_nothing():
    assert isinstance(replace(FOUND, small_sum_seconds=1e-9).hop, Hop)
    assert replace(FOUND, small_sum_seconds=1e-9).hop.seconds > 0

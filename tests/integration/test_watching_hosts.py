"""Hosts and ranks that are killed, cut off, stopped, stuck or slow: named on rank 0, all leave.

Real runs on simulated hosts, with limits of seconds instead of minutes.
"""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from across_hosts import Across, across, plant, words_for
from launched import launched
from simulated_hosts import SimulatedHosts, can_simulate

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not can_simulate(), reason="hosts need root, iproute2 and openssh-server"),
]


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory) -> Iterator[SimulatedHosts]:
    with SimulatedHosts(tmp_path_factory.mktemp("hosts"), 2) as hosts:
        yield hosts


def log_of(run: Across, rank: int) -> str:
    return (run.folder / f"log/rank_{rank:02d}.log").read_text(errors="replace")


def test_a_rank_that_hangs_on_another_host_is_named_with_its_function(
    two_hosts, shared_folder, tmp_path
):
    words = words_for(shared_folder)
    disturbed = plant({"rank": 1, "from": 8, "to": 8, "phase": "data", "seconds": 3600})
    with across(two_hosts, tmp_path / "run", *words, **disturbed) as run:
        run.wait_for_step(7)
        seconds = run.wait_for_ranks_to_leave(40)
        codes = run.codes()
        (said,) = run.own_words()
    assert codes == {1: 6, 2: 6}
    # On a busy machine 5 steps are more than the limit that was set.
    found = re.match(r"bigft: nothing has moved for ([\d.]+)s \(limit ([\d.]+)s, ", said)
    assert found
    still, limit = map(float, found.groups())
    assert still < limit + 3
    assert seconds < limit + 12
    assert re.search(
        r"rank 1 on host w2 \(pid \d+, [\d.]+ [GM]iB\) stands in step 8 of 100000 \(data\)", said
    )
    assert "in sleep_long (disturbed_run.py:" in said
    assert "the others wait: rank 0 in step 8 of 100000 (forward)" in said
    assert (run.folder / "log/last_words.txt").read_text() == f"{said}\n"
    for rank in (0, 1):
        assert "the run stands still; Python stacks follow" in log_of(run, rank)
        assert "most recent call first" in log_of(run, rank)
    assert "sleep_long" in log_of(run, 1)


def test_a_rank_that_dies_on_another_host_is_named_there_and_all_leave_at_once(
    two_hosts, shared_folder, tmp_path
):
    with across(two_hosts, tmp_path / "run", *words_for(shared_folder)) as run:
        run.wait_for_step(2)
        time.sleep(3)  # Rank 0 hears of each step within a second of it.
        run.send(1, signal.SIGKILL)
        seconds = run.wait_for_ranks_to_leave(30)
        codes = run.codes()
        (said,) = run.own_words(1)
        (witness,) = run.own_words(2)
    assert codes[1] == 6
    assert seconds < 12
    # Nobody is left there to tell rank 0; the witness of that host speaks for itself.
    assert "was ended by SIGKILL from outside" in witness
    assert "host w2 (rank 1) has gone: its connection closed without a farewell" in said
    assert "When it was last heard, rank 1 in step " in said


@pytest.mark.nightly
def test_a_run_that_is_slow_now_and_then_is_left_alone(two_hosts, shared_folder, tmp_path):
    """Long saves, long evaluations, steps ten times as long as others, all below their limits."""
    words = words_for(
        shared_folder,
        **{
            "max_steps": 40,
            "save_steps": 13,
            "eval_steps": 11,
            "watch.slow_seconds": 60,
            "checkpoint.keep_last": 1,
        },
    )
    disturbed = plant(
        {"from": 1, "to": 40, "phase": "forward", "up_to": 2.0},
        {"rank": 1, "from": 20, "to": 20, "phase": "backward", "seconds": 6.0},
        {"from": 13, "to": 39, "phase": "saving", "seconds": 12.0},
        {"from": 11, "to": 33, "phase": "evaluating", "seconds": 12.0},
    )
    with across(two_hosts, tmp_path / "run", *words, **disturbed) as run:
        codes = run.codes(400)
        said = run.own_words()
    assert codes == {1: 0, 2: 0}, run.said()[-3000:]
    assert said == []
    assert run.rows()[-1]["step"] == 40


@pytest.mark.nightly
def test_a_pause_of_all_hosts_together_is_no_fault(two_hosts, shared_folder, tmp_path):
    """As a virtual machine that is moved, or Ctrl-Z."""
    with across(two_hosts, tmp_path / "run", *words_for(shared_folder)) as run:
        run.wait_for_step(4)
        for rank in (0, 1):
            run.send(rank, signal.SIGSTOP)
        time.sleep(15)
        for rank in (0, 1):
            run.send(rank, signal.SIGCONT)
        step = run.rows()[-1]["step"]
        run.wait_for_step(step + 20)
        assert run.own_words() == [], "nobody was taken for lost or hanging"
        assert run.rows()[-1]["step"] >= step + 20


@pytest.mark.nightly
def test_a_slow_rank_is_named_and_named_again_when_it_keeps_up(two_hosts, shared_folder, tmp_path):
    words = words_for(shared_folder, max_steps=110)
    disturbed = plant({"rank": 1, "from": 5, "to": 62, "phase": "backward", "seconds": 0.25})
    with across(two_hosts, tmp_path / "run", *words, **disturbed) as run:
        assert run.codes(300) == {1: 0, 2: 0}
        lines = [line for line in run.said(1).splitlines() if "rank 1 on host w2" in line]
    slow, fine = lines
    assert slow.startswith("warning: rank 1 on host w2 is slow: its own work took")
    assert "most of that in forward and backward" in slow
    assert fine.startswith("rank 1 on host w2 keeps up again at step")
    events = (run.folder / "log/events.jsonl").read_text().splitlines()
    first, second = (json.loads(line) for line in events)
    assert (first["event"], second["event"]) == ("straggler", "straggler_over")
    assert 50 <= first["step"] <= 56
    assert first["host"] == "w2"


@pytest.mark.nightly
def test_a_firewall_between_the_hosts_is_said_and_the_run_goes_on(
    two_hosts, shared_folder, tmp_path
):
    """A port that the other host may not reach: nothing but a warning."""
    rule = "pref 100 ipproto tcp dport 29777 blackhole".split()
    space = ["ip", "-n", f"{two_hosts._tag}n2", "rule"]
    subprocess.run([*space, "add", *rule], check=True)
    try:
        words = words_for(shared_folder, **{"watch.port": 29777})
        with across(two_hosts, tmp_path / "run", *words) as run:
            run.wait_for(lambda: "cannot reach" in run.said(1), "the warning")
            step = run.rows()[-1]["step"] if run.rows() else 0
            run.wait_for_step(step + 10)
            assert run.said(1).count("cannot reach") == 1
            assert "port 29777, so nobody notices" in run.said(1)
    finally:
        subprocess.run([*space, "del", *rule], check=True)


@pytest.mark.nightly
def test_one_host_is_watched_as_well(shared_folder, tmp_path):
    """A stopped rank beside rank 0, and rank 0 itself."""
    with launched(2, tmp_path / "run", *words_for(shared_folder)) as run:
        ranks = run.ranks()
        run.wait_for_step(4)
        os.kill(ranks[0], signal.SIGSTOP)
        run.wait_for_all_gone([ranks[1]], 20)
        (said,) = run.own_words()
        os.kill(ranks[0], signal.SIGKILL)
    assert said.startswith(f"bigft: rank 0 on host {os.uname().nodename} (pid {ranks[0]}) is")
    assert "stopped by a signal (SIGSTOP) for" in said

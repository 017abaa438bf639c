"""Every kind of fault that can happen to one of three hosts, to one run."""

import signal
import sys

import pytest
from host_faults import FAULTS, Campaign
from launches import WORDS, launch
from planting import mounted_disk
from simulated_hosts import SimulatedHosts, can_simulate

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.distributed,
    pytest.mark.skipif(not can_simulate(), reason="hosts can only be simulated by root, with sshd"),
]


@pytest.mark.timeout(2400)
def test_every_kind_of_fault_once(tmp_path):
    words = [*WORDS[:4], "--max_steps", 100_000, "--num_train_epochs", 1000, "--save_steps", 10]
    words += ["--data.eval_fraction", 0]
    options = ["--max_restarts", 1000, "--check", "off"]
    with (
        mounted_disk(tmp_path / "disk", "3g") as disk,
        SimulatedHosts(tmp_path / "hosts", 3) as hosts,
        launch(hosts, disk / "run", options, words, said=tmp_path) as run,
    ):
        run.wait_for_step(11)
        campaign = Campaign(hosts, run, 10, seed=1, log=tmp_path / "faults.jsonl")
        for number, fault in enumerate(FAULTS, 1):
            verdict = campaign.suffer(fault, number, host=1 + number % 3)
            sys.stderr.write(f"{campaign.describe(verdict)}\n")
            assert run.process.poll() is None, run.said()[-3000:]
        run.signal(signal.SIGTERM)
        assert run.wait() == 75
        run.wait_for_no_orphans(60)
    problems = {v.fault: v.problems for v in campaign.verdicts if v.problems}
    assert problems == {}

"""Three hosts: as one host with three ranks, by every starter; fewer hosts."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from launches import (
    QUICK,
    WORDS,
    assert_same_run,
    deepspeed_by_pdsh,
    launch,
    read_losses,
    read_weights,
    train_here,
)
from simulated_hosts import SimulatedHosts, can_simulate

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.distributed,
    pytest.mark.skipif(not can_simulate(), reason="hosts can only be simulated by root, with sshd"),
]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedHosts]:
    with SimulatedHosts(tmp_path_factory.mktemp("hosts"), 3) as three:
        yield three


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run as three ranks of one host."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    assert train_here(folder, 3).returncode == 0
    return folder


def test_plain_ssh_trains_as_one_host(hosts, reference, tmp_path):
    with launch(hosts, tmp_path / "run", [], WORDS) as run:
        assert run.wait() == 0
    assert_same_run(tmp_path / "run", reference)


@pytest.mark.skipif(shutil.which("pdsh") is None, reason="pdsh is not installed")
def test_deepspeed_by_pdsh_trains_as_one_host(hosts, reference, tmp_path):
    done = deepspeed_by_pdsh(hosts, tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(tmp_path / "run", reference)


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


MPI = pytest.mark.parametrize(
    "launcher",
    [
        pytest.param("openmpi", marks=needs("mpirun.openmpi")),
        pytest.param("mpich", marks=needs("mpiexec.hydra")),
    ],
)


@MPI
def test_mpirun_trains_as_one_host_and_starts_again(hosts, reference, tmp_path, launcher):
    options = [*QUICK, "--launcher", launcher, "--max_restarts", 1]
    with launch(hosts, tmp_path / "run", options, WORDS) as run:
        run.wait_for_step(3)
        os.kill(run.ranks(3)[-1], signal.SIGKILL)
        assert run.wait() == 0
        run.wait_for_no_orphans(60)
    assert "start 2: 3 ranks" in run.said()
    assert_same_run(tmp_path / "run", reference)


@MPI
def test_a_killed_launcher_of_mpirun_leaves_nothing_behind(hosts, tmp_path, launcher):
    with launch(hosts, tmp_path / "run", [*QUICK, "--launcher", launcher], WORDS) as run:
        run.wait_for_step(1)
        run.close()
        run.wait_for_no_orphans(60)
    assert sorted((tmp_path / "run/checkpoints").glob("step_*/manifest.json"))


@MPI
def test_a_host_that_mpirun_loses_is_waited_for(hosts, reference, tmp_path, launcher):
    options = [*QUICK, "--launcher", launcher, "--max_restarts", 1]
    with launch(hosts, tmp_path / "run", options, WORDS) as run:
        run.wait_for_step(3)
        hosts.cut(3)
        hosts.kill(3)
        time.sleep(30)
        hosts.mend(3)
        hosts.boot(3)
        assert run.wait() == 0
        run.wait_for_no_orphans(60)
    assert "start 2: 3 ranks" in run.said()
    assert_same_run(tmp_path / "run", reference)


def test_a_run_of_three_hosts_goes_on_with_two(hosts, reference, tmp_path):
    """Six sequences per step, which two hosts can share as well as three."""
    words = [*WORDS, "--gradient_accumulation_steps", 2]
    whole = tmp_path / "whole"
    assert train_here(whole, 3, "--gradient_accumulation_steps", 2).returncode == 0
    options = [*QUICK, "--max_restarts", 1, "--min_hosts", 2]
    with launch(hosts, tmp_path / "run", options, words) as run:
        run.wait_for_step(3)
        hosts.cut(3)
        hosts.kill(3)
        assert run.wait(600) == 0
    hosts.mend(3)
    hosts.boot(3)
    said = run.said()
    assert f"going on without {hosts.names[2]}" in said
    assert "start 2: 2 ranks on 2 hosts" in said
    assert "keep the 6 sequences per step" in said
    ours, theirs = read_losses(tmp_path / "run"), read_losses(whole)
    assert ours.keys() == theirs.keys()
    assert all(ours[step] == pytest.approx(theirs[step], rel=1e-3) for step in theirs)
    assert read_weights(tmp_path / "run").keys() == read_weights(whole).keys()

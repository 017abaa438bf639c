"""`bigft launch` over a real sshd on simulated hosts: starts, ends, restarts."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launches import (
    QUICK,
    ROOT,
    WORDS,
    assert_same_run,
    deepspeed_by_pdsh,
    launch,
    read_weights,
    train_here,
)
from safetensors.torch import load_file
from simulated_hosts import NETWORK, SimulatedHosts, can_simulate

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not can_simulate(), reason="hosts can only be simulated by root, with sshd"),
]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedHosts]:
    with SimulatedHosts(tmp_path_factory.mktemp("hosts"), 2) as two:
        yield two


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run as two ranks of one host."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    assert train_here(folder, 2).returncode == 0
    return folder


def test_a_killed_rank_is_named_and_the_run_goes_on_to_the_same_end(hosts, reference, tmp_path):
    with launch(hosts, tmp_path / "run", ["--max_restarts", 1], WORDS) as run:
        run.wait_for_step(3)
        os.kill(run.ranks(2)[0], signal.SIGKILL)
        assert run.wait() == 0
        assert run.out.read_text() == f"{tmp_path}/run/model\n"
        said = run.said()
        assert run.wait_for_no_orphans(60) < 60
    assert f"rank 1 on {hosts.names[1]} was ended by SIGKILL" in said
    assert "from step 2" in said
    assert "resumed from step_00000002" in said
    assert_same_run(tmp_path / "run", reference)
    done = bigft("consolidate", tmp_path / "run", "--output_dir", tmp_path / "consolidated")
    assert done.returncode == 0, done.stderr
    weights = load_file(tmp_path / "consolidated/model.safetensors")
    exported = read_weights(tmp_path / "run")
    assert all(weights[name].equal(exported[name]) for name in exported)


@pytest.mark.skipif(shutil.which("pdsh") is None, reason="pdsh is not installed")
def test_deepspeed_by_pdsh_trains_as_one_host(hosts, reference, tmp_path):
    done = deepspeed_by_pdsh(hosts, tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(tmp_path / "run", reference)


def test_a_stop_signal_commits_on_all_hosts(hosts, tmp_path):
    words = ["400" if word == 8 else word for word in WORDS]
    with launch(hosts, tmp_path / "run", [*QUICK, "--max_restarts", 3], words) as run:
        run.wait_for_step(2)
        run.signal(signal.SIGTERM)
        assert run.wait() == 75
        run.wait_for_no_orphans(60)
        last = run.rows()[-1]["step"]
    manifest = tmp_path / f"run/checkpoints/step_{last:08d}/manifest.json"
    assert manifest.exists()
    assert "start 2" not in run.said()
    # And one host goes on with it, with the same sequences per step.
    options = [*QUICK, "--include", hosts.names[0]]
    with launch(hosts, tmp_path / "run", options, words) as run:
        run.wait_for_step(last + 1)
        run.signal(signal.SIGINT)
        assert run.wait() == 75
    assert f"resumed from step_{last:08d}" in run.said()
    assert "keep the 2 sequences per step" in run.said()


def test_a_killed_launcher_leaves_nothing_behind_and_nothing_is_lost(hosts, tmp_path):
    with launch(hosts, tmp_path / "run", QUICK, WORDS) as run:
        run.wait_for_step(1)
        run.close()
        run.wait_for_no_orphans(60)
        steps = sorted(path.name for path in (tmp_path / "run/checkpoints").glob("step_*"))
    # Asked to stop by the end of the launcher: what had been done by then is committed.
    assert steps


def test_a_mistake_in_the_settings_is_found_before_any_host_is_asked(hosts, tmp_path):
    with launch(hosts, tmp_path / "run", [], [*WORDS, "--learnig_rate", 1]) as run:
        assert run.wait(30) == 2
    assert "learning_rate" in run.said()
    assert run.told() == []


def test_a_host_that_does_not_answer_is_named(hosts, tmp_path):
    hostfile = tmp_path / "hosts"
    hostfile.write_text(f"{hosts.names[0]} slots=1\n{NETWORK}.99 slots=1\n")
    done = start(hosts, hostfile, tmp_path)
    assert done.returncode == 6
    assert f"ssh on {NETWORK}.99" in done.stderr
    assert not (tmp_path / "never").exists()


def test_a_missing_hostfile_is_an_error(hosts, tmp_path):
    done = start(hosts, tmp_path / "none", tmp_path)
    assert done.returncode == 6
    assert f"hostfile {tmp_path / 'none'}: No such file" in done.stderr


def bigft(*words: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bigft", *map(str, words)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)


def start(hosts: SimulatedHosts, hostfile: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bigft", "launch", "--hostfile", hostfile, "--", "train"]
    command += [*WORDS, "--output_dir", folder / "never"]
    tools = {"PATH": hosts.write_tools(hosts.folder / "bin"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env={**os.environ, **tools},
        capture_output=True,
        text=True,
        timeout=60,
    )

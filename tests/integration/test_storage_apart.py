"""Hosts with disks of their own: the run, its checkpoints and its model are those of one host."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from apart_runs import ROOT, ApartRun, run_apart
from resume_runs import digest_state
from simulated_hosts import SimulatedHosts, can_simulate
from small_runs import ds_config, read_losses, small_settings

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not can_simulate(), reason="needs root, iproute2 and openssh-server"),
]


HOST_KILLS = int(os.environ.get("BIGFT_HOST_KILLS", "12"))
SEED = int(os.environ.get("BIGFT_SEED", "0"))


def settings_of(shared: Path, **changes: object) -> dict[str, object]:
    return small_settings(shared, **{"optim.lr_scheduler_type": "constant", **changes})


def make_words(shared: Path, folder: Path, **changes: object) -> list[object]:
    settings = settings_of(shared, **changes)
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    return ["--config", ds_config("zero3"), "--output_dir", folder, *words]


def read_model(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def consolidate(tmp: Path, hosts: SimulatedHosts, *words: object) -> subprocess.CompletedProcess:
    environ = {**os.environ, "PATH": hosts.write_tools(tmp / "tools"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "bigft", "consolidate", *map(str, words)],
        capture_output=True, text=True, timeout=120, env=environ, cwd=ROOT,
    )  # fmt: skip


def test_two_hosts_save_and_export_as_one_host_does(tmp_path, shared_folder, two_ranks):
    disk = tmp_path / "disk"
    folder = disk / "run"
    two_ranks.run(
        "runs:train", settings_of(shared_folder), str(tmp_path / "one"), ds_config("zero3")
    )
    with SimulatedHosts(tmp_path / "hosts", 2, private=[disk]) as hosts:
        words = make_words(shared_folder, folder, save_steps=2)
        said = run_apart(hosts, tmp_path / "first", words)
        assert f"each of 2 hosts keeps its own ranks' files in {folder}/checkpoints" in said
        here, there = (hosts.open_private(number, disk) / "run" for number in (1, 2))
        assert read_losses(here) == read_losses(tmp_path / "one")
        assert read_model(here) == read_model(tmp_path / "one")
        step = "checkpoints/step_00000004"
        states = [digest_state(one / step) for one in (here, there)]
        assert [sorted(one) for one in states] == [
            ["index.json", "rank_00000.safetensors"],
            ["rank_00001.safetensors"],
        ]
        assert states[0] | states[1] == digest_state(tmp_path / "one" / step)
        manifests = [(one / step / "manifest.json").read_bytes() for one in (here, there)]
        assert manifests[0] == manifests[1]
        assert [*here.rglob(".tmp*"), *there.rglob(".tmp*")] == []
        # From a place that has nothing of the run but its path.
        hostfile = hosts.write_hostfile(tmp_path / "hosts.txt")
        out = ["--output_dir", tmp_path / "out"]
        done = consolidate(tmp_path, hosts, folder, "--hostfile", hostfile, *out)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out/model.safetensors").read_bytes() == read_model(here)
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith("out")] == ["out"]
        # On one of the hosts, without help.
        done = consolidate(tmp_path, hosts, there, "--output_dir", tmp_path / "none")
        assert done.returncode == 5
        assert "state/rank_00000.safetensors" in done.stderr
        assert f"rsync -a -- {hosts.names[0]}:{folder}/{step}/" in done.stderr


@pytest.mark.nightly
def test_three_hosts_go_on_as_two_once_the_files_of_the_third_are_there(tmp_path, shared_folder):
    disk = tmp_path / "disk"
    folder = disk / "run"
    with SimulatedHosts(tmp_path / "hosts", 3, private=[disk]) as hosts:
        words = make_words(shared_folder, folder, max_steps=6, save_steps=3)
        run_apart(hosts, tmp_path / "whole", words)
        here, _, gone = (hosts.open_private(number, disk) / "run" for number in (1, 2, 3))
        whole = read_losses(here)
        for number in (1, 2, 3):
            shutil.rmtree(hosts.open_private(number, disk) / "run")
        words = make_words(shared_folder, folder, max_steps=3)
        run_apart(hosts, tmp_path / "first", words)
        words = make_words(shared_folder, folder, max_steps=6)
        hosts.kill(3)
        run = ApartRun(hosts, tmp_path / "second", words, numbers=[1, 2])
        assert run.wait() == [5, 5]
        step = "checkpoints/step_00000003"
        name = hosts.names[2]
        assert f"state/rank_00002.safetensors on {name} in {folder}/{step}" in run.said()
        assert f"rsync -a -- {name}:{folder}/{step}/ {folder}/{step}/" in run.said()
        shutil.copytree(gone / step, here / step, dirs_exist_ok=True)
        said = run_apart(hosts, tmp_path / "third", words, numbers=[1, 2])
        assert "resumed from step_00000003, 3 steps to go" in said
        assert read_losses(here) == pytest.approx(whole, rel=1e-4)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_nothing_is_lost_when_hosts_go_down_while_they_save(tmp_path, shared_folder):
    disk, chance = tmp_path / "disk", random.Random(SEED)
    folder = disk / "run"
    with SimulatedHosts(tmp_path / "hosts", 3, private=[disk]) as hosts:
        words = make_words(shared_folder, folder, max_steps=1000, save_steps=1)
        disks = [hosts.open_private(number, disk) / "run" for number in (1, 2, 3)]
        for kill in range(HOST_KILLS):
            announced = max(map(read_latest, disks))
            run = ApartRun(hosts, tmp_path / f"start{kill}", words)
            goal = announced + chance.randint(1, 4)
            run.wait_for(lambda goal=goal: max(map(read_latest, disks)) >= goal, f"step {goal}")
            time.sleep(chance.uniform(0, 0.3))
            victim = chance.randint(1, 3)
            hosts.kill(victim)
            codes = run.wait()
            assert 0 not in codes, run.said()
            hosts.boot(victim)
            if announced:
                assert f"resumed from step_{announced:08d}" in run.said() or (
                    f"resumed from step_{announced + 1:08d}" in run.said()
                ), run.said()
        announced = max(map(read_latest, disks))
        words = make_words(shared_folder, folder, max_steps=announced + 3, save_steps=1)
        run_apart(hosts, tmp_path / "last", words)
        for one in disks:
            left = [p.name for p in (one / "checkpoints").iterdir() if p.name.startswith(".tmp")]
            assert left == []
            assert read_latest(one) == announced + 3


def read_latest(run: Path) -> int:
    try:
        return int((run / "checkpoints/latest").read_text().strip().removeprefix("step_"))
    except (OSError, ValueError):
        return 0

"""Hosts with disks of their own: the run, its checkpoints and its model are those of one host."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from apart_runs import ROOT, run_apart
from simulated_hosts import SimulatedHosts, can_simulate
from small_runs import ds_config, read_losses, small_settings

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not can_simulate(), reason="needs root, iproute2 and openssh-server"),
]


def make_words(shared: Path, folder: Path, **changes: object) -> list[object]:
    settings = small_settings(shared, **{"optim.lr_scheduler_type": "constant", **changes})
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


def test_two_hosts_save_resume_and_export_as_one_host_does(tmp_path, shared_folder, two_ranks):
    disk = tmp_path / "disk"
    folder = disk / "run"
    settings = small_settings(shared_folder, **{"optim.lr_scheduler_type": "constant"})
    two_ranks.run("runs:train", settings, str(tmp_path / "one"), ds_config("zero3"))
    with SimulatedHosts(tmp_path / "hosts", 2, private=[disk]) as hosts:
        words = make_words(shared_folder, folder, max_steps=2, save_steps=1)
        said = run_apart(hosts, tmp_path / "first", words)
        assert f"each of 2 hosts keeps its own ranks' files in {folder}/checkpoints" in said
        said = run_apart(hosts, tmp_path / "second", make_words(shared_folder, folder))
        assert "resumed from step_00000002, 2 steps to go" in said
        here, there = (hosts.open_private(number, disk) / "run" for number in (1, 2))
        assert read_losses(here) == read_losses(tmp_path / "one")
        assert read_model(here) == read_model(tmp_path / "one")
        step = "checkpoints/step_00000004"
        names = [sorted(p.name for p in (one / step / "state").iterdir()) for one in (here, there)]
        assert names == [["index.json", "rank_00000.safetensors"], ["rank_00001.safetensors"]]
        assert (here / step / "manifest.json").read_bytes() == (
            there / step / "manifest.json"
        ).read_bytes()
        left = [p.name for one in (here, there) for p in (one / "checkpoints").glob(".tmp*")]
        assert left == []
        # From a place that has nothing of the run but its path.
        hostfile = hosts.write_hostfile(tmp_path / "hosts.txt")
        done = consolidate(
            tmp_path, hosts, folder, "--hostfile", hostfile, "--output_dir", tmp_path / "out"
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out/model.safetensors").read_bytes() == read_model(here)
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith("out")] == ["out"]
        # On one of the hosts, without help.
        done = consolidate(tmp_path, hosts, there, "--output_dir", tmp_path / "none")
        assert done.returncode == 5
        assert "state/rank_00000.safetensors" in done.stderr
        assert f"rsync -a -- {hosts.names[0]}:{folder}/{step}/" in done.stderr

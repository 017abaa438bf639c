"""The private folder of a run's swap files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bigft.engine.swap import (
    close_swap,
    find_swap_roots,
    new_run_name,
    open_swap,
    plan_swap_bytes,
    remove_orphans,
    sign_swap,
    with_private_swap,
)
from bigft.errors import ConfigError, PlanError


def _ds(param: Path | None, optimizer: Path | None) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": 3}
    for part, path in (("offload_param", param), ("offload_optimizer", optimizer)):
        zero[part] = {"device": "nvme", "nvme_path": str(path)} if path else {"device": "cpu"}
    return {"zero_optimization": zero}


def test_two_runs_share_no_folder_and_each_removes_its_own(tmp_path):
    ds = _ds(tmp_path, tmp_path)
    one, other = (with_private_swap(ds, new_run_name()) for _ in range(2))
    for private in (one, other):
        open_swap(private, 10, 1)
        (folder,) = find_swap_roots(private)
        assert folder.parent == tmp_path
        (folder / "rank0.swp").write_text("x")
    assert find_swap_roots(one) != find_swap_roots(other)
    close_swap(one)
    assert list(tmp_path.iterdir()) == find_swap_roots(other)
    assert find_swap_roots(ds) == [tmp_path], "the settings of the user are untouched"


def test_only_parts_on_nvme_get_a_folder(tmp_path):
    assert find_swap_roots(_ds(None, None)) == []
    private = with_private_swap(_ds(tmp_path / "a", tmp_path / "b"), "mine")
    assert find_swap_roots(private) == [tmp_path / "a/mine", tmp_path / "b/mine"]
    host = with_private_swap(_ds(None, tmp_path), "mine")["zero_optimization"]
    assert host["offload_param"] == {"device": "cpu"}


def test_space_is_that_of_states_and_weights_on_this_host(tmp_path):
    assert plan_swap_bytes(_ds(None, tmp_path), 16, 1000, 1.0) == 16_000
    assert plan_swap_bytes(_ds(tmp_path, tmp_path), 4.03, 1000, 0.5) == 3_015
    assert plan_swap_bytes(_ds(None, None), 16, 1000, 1.0) == 0


def test_too_little_space_is_refused_and_leaves_nothing(tmp_path):
    private = with_private_swap(_ds(tmp_path, tmp_path), "mine")
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(PlanError, match="files of 7.00B parameters need about") as caught:
        open_swap(private, 2 * free, 7_000_000_000)
    assert str(tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_path_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    private = with_private_swap(_ds(tmp_path / "good", tmp_path / "file"), "mine")
    with pytest.raises(ConfigError, match="file' cannot be written"):
        open_swap(private, 1, 1)
    assert not (tmp_path / "good/mine").exists()


def test_folders_of_dead_runs_are_removed_and_others_stay(tmp_path):
    ds = _ds(tmp_path, tmp_path)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = os.uname().nodename
    owners = {
        "bigft-swap-dead": f"{host} {dead.pid}",
        "bigft-swap-alive": f"{host} {os.getppid()}",
        "bigft-swap-elsewhere": f"another-host {dead.pid}",
        "somebody-elses": f"{host} {dead.pid}",
    }
    for name, owner in owners.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "owner").write_text(owner)
    (tmp_path / "bigft-swap-unsigned").mkdir()
    remove_orphans(ds)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [
        "bigft-swap-alive",
        "bigft-swap-elsewhere",
        "bigft-swap-unsigned",
        "somebody-elses",
    ]


def test_a_signed_folder_of_this_process_is_no_orphan(tmp_path):
    ds = _ds(None, tmp_path)
    private = with_private_swap(ds, new_run_name())
    open_swap(private, 1, 1)
    sign_swap(private)
    remove_orphans(ds)
    assert find_swap_roots(private)[0].is_dir()

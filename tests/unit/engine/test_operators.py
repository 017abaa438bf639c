"""Whether DeepSpeed's operators can be built here, told before anything expensive starts."""

import os
import shutil
import time
from pathlib import Path

import pytest

from bigft.engine.operators import (
    check_build_tools,
    clear_stale_lock,
    find_needed_operators,
)
from bigft.errors import LaunchError

BOTH = ["CPUAdamBuilder", "AsyncIOBuilder"]


@pytest.fixture
def tools(tmp_path, monkeypatch) -> Path:
    """A PATH with nothing on it but what a test puts there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("c++", "ninja"):
        found = shutil.which(name)
        assert found, f"the test machine itself has no {name}"
        (folder / name).symlink_to(found)
    # The compiler calls `as` and `ld` by the PATH.
    for name in ("as", "ld"):
        (folder / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    return folder


def _remove(tools: Path, *names: str) -> None:
    for name in names:
        (tools / name).unlink()


def _problem(builders: list[str]) -> str:
    with pytest.raises(LaunchError) as caught:
        check_build_tools(builders)
    assert caught.value.exit_code == 6
    return str(caught.value)


def test_complete_tools_pass(tools):
    check_build_tools(BOTH)


def test_nothing_is_needed_when_nothing_is_built(tools):
    _remove(tools, "c++", "ninja")
    check_build_tools([])


def test_missing_compiler_says_what_to_install(tools):
    _remove(tools, "c++")
    text = _problem(["CPUAdamBuilder"])
    assert "no C++ compiler ('c++' is not on PATH), but DeepSpeed builds CPUAdam here" in text
    assert "apt-get install g++" in text


def test_compiler_named_by_cxx_is_the_one_that_counts(tools, monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/g++")
    assert "'/no/such/g++'" in _problem(["CPUAdamBuilder"])
    monkeypatch.setenv("CXX", str(tools / "c++"))
    _remove(tools, "ninja")
    assert "no ninja" in _problem(["CPUAdamBuilder"])


def test_missing_compiler_and_ninja_are_told_together(tools):
    _remove(tools, "c++", "ninja")
    text = _problem(BOTH)
    assert text.startswith("2 problems:")
    assert "no C++ compiler" in text
    assert "pip install ninja" in text
    assert "CPUAdam, AsyncIO" in text


def _compiler_without_libaio(tools: Path) -> None:
    compiler = (tools / "c++").readlink()
    _remove(tools, "c++")
    # A system without libaio.h, as the compiler sees it.
    (tools / "c++").write_text(f'#!/bin/sh\nexec {compiler} --sysroot=/no/such "$@"\n')
    (tools / "c++").chmod(0o755)


def test_missing_libaio_is_told_only_to_those_who_need_it(tools):
    _compiler_without_libaio(tools)
    check_build_tools(["CPUAdamBuilder"])
    text = _problem(BOTH)
    assert "libaio is missing" in text
    assert "apt-get install libaio-dev" in text


def test_missing_ninja_and_libaio_are_told_together(tools):
    _compiler_without_libaio(tools)
    _remove(tools, "ninja")
    text = _problem(BOTH)
    assert "libaio is missing" in text
    assert "no ninja" in text


@pytest.mark.parametrize(
    ("param", "optimizer", "on_cpu", "needed"),
    [
        ("none", "none", False, []),
        ("none", "none", True, ["ShareMemCommBuilder"]),
        ("cpu", "cpu", False, ["CPUAdamBuilder"]),
        ("cpu", "nvme", False, BOTH),
        ("nvme", "cpu", True, [*BOTH, "ShareMemCommBuilder"]),
    ],
)
def test_needed_operators_follow_from_the_offload(param, optimizer, on_cpu, needed):
    ds = {
        "zero_optimization": {
            "offload_param": {"device": param},
            "offload_optimizer": {"device": optimizer},
        }
    }
    found = find_needed_operators(ds, on_cpu=on_cpu, uses_cpu_adam=optimizer != "none")
    assert found == needed


@pytest.fixture
def lock(tmp_path, monkeypatch) -> Path:
    """The lock of an operator `some_op`, as old as a build that was killed an hour ago."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    clear_stale_lock("some_op")
    (folder,) = tmp_path.rglob("some_op")
    file = folder / "lock"
    file.touch()
    os.utime(file, (time.time() - 3600,) * 2)
    return file


def test_lock_of_a_killed_build_is_removed(lock):
    clear_stale_lock("some_op")
    assert not lock.exists()


def test_lock_of_a_running_build_stays(lock):
    with lock.open():
        clear_stale_lock("some_op")
    assert lock.exists()


def test_young_lock_stays_because_another_host_may_hold_it(lock):
    os.utime(lock)
    clear_stale_lock("some_op")
    assert lock.exists()

"""Limits and counters of control groups of both versions, and how an end is explained with them."""

import signal
from pathlib import Path

import pytest

from bigft.distributed.exits import End, explain_exit
from bigft.distributed.memory import HostMemory, read_host_memory

GIB = 1 << 30


def _write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_version_2_takes_the_tightest_group_above_this_process(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/slurm/job_7/step_0\n")
    _write(tmp_path / "cg/slurm", memory__max="max", memory__current=str(9 * GIB))
    _write(
        tmp_path / "cg/slurm/job_7",
        memory__max=str(2 * GIB),
        memory__current=str(GIB),
        memory__events="low 0\nhigh 0\nmax 31\noom 2\noom_kill 100002\noom_group_kill 0",
    )
    _write(tmp_path / "cg/slurm/job_7/step_0", memory__max="max", memory__current="5")
    found = read_host_memory(tmp_path / "cg", own)
    assert found == HostMemory(100002, GIB, 2 * GIB, is_grouped=True)


def test_version_1_has_other_names(tmp_path):
    own = tmp_path / "own"
    own.write_text("5:devices:/x\n4:memory:/docker/abc\n0::/\n")
    _write(tmp_path / "cg")
    _write(tmp_path / "cg/memory", memory__limit_in_bytes="9223372036854771712")
    _write(
        tmp_path / "cg/memory/docker/abc",
        memory__limit_in_bytes=str(GIB),
        memory__usage_in_bytes=str(GIB // 2),
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 100003",
    )
    found = read_host_memory(tmp_path / "cg", own)
    assert found == HostMemory(100003, GIB // 2, GIB, is_grouped=True)


def test_in_a_container_the_group_is_the_root_of_what_is_mounted(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/system.slice/docker-abc.scope\n")
    _write(tmp_path / "cg", memory__max=str(3 * GIB), memory__current=str(GIB))
    assert read_host_memory(tmp_path / "cg", own).limit_bytes == 3 * GIB


def test_without_groups_the_host_is_the_limit(tmp_path):
    found = read_host_memory(tmp_path / "none", tmp_path / "none")
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert found.limit_bytes == total
    assert 0 < found.used_bytes < total
    assert not found.is_grouped


LAST = HostMemory(3, 15 * GIB, 16 * GIB, is_grouped=True)


@pytest.mark.parametrize(
    ("code", "kills", "words"),
    [
        (
            -9,
            4,
            ["host memory ran out", "its control group has 16.00 GiB", "15.00 GiB were in use"],
        ),
        (-9, 4, ["the plan was 14.00 GiB", "This happened in step 7 of 9 (backward)"]),
        (-4, 3, ["SIGILL", "TORCH_EXTENSIONS_DIR"]),
        (-9, 4, ["zero3_nvme.json", "--per_device_train_batch_size", "fewer ranks", "adamw_8bit"]),
        (-9, 3, ["SIGKILL from outside", "15.00 GiB of 16.00 GiB were in use"]),
        (-7, 3, ["SIGBUS", "/dev/shm has", "--shm-size"]),
        (-11, 3, ["SIGSEGV", "crash in native code"]),
        (-6, 3, ["SIGABRT", "its log"]),
        (-signal.SIGRTMIN - 1, 3, ["signal 35"]),
        (3, 3, ["left with exit code 3"]),
    ],
)
def test_an_end_is_explained_with_its_numbers(code, kills, words):
    now = HostMemory(kills, 2 * GIB, 16 * GIB, is_grouped=True)
    facts = {"phase": "backward", "step": 7, "total_steps": 9, "planned_host_bytes": 14 * GIB}
    text = explain_exit(code, End(LAST, now, facts))
    assert all(word in text for word in words), text

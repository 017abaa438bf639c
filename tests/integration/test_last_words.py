"""Real runs end badly, and their last words say why, with numbers and what to do."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ending_runs import environment, last_words, start, words_for
from launched import launched

pytestmark = pytest.mark.distributed

GROUPS = Path("/sys/fs/cgroup/memory")
needs_groups = pytest.mark.skipif(
    not os.access(GROUPS, os.W_OK), reason="needs root and control groups of version 1"
)
needs_mounts = pytest.mark.skipif(
    os.geteuid() != 0
    or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0,
    reason="needs root and mount namespaces",
)


@contextlib.contextmanager
def running(words: list[str], *before: str, **changes: str) -> Iterator["subprocess.Popen[str]"]:
    process = start(words, *before, **changes)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(happens: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.05)


def has_stepped(folder: Path) -> bool:
    file = folder / "metrics.jsonl"
    return file.exists() and '"loss"' in file.read_text()


def witnesses() -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"witness_process.py" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def test_a_run_of_one_process_that_is_killed_is_explained_by_its_witness(shared_folder, tmp_path):
    folder = tmp_path / "run"
    before = set(witnesses())
    with running(words_for(shared_folder, folder)) as process:
        wait_for(lambda: has_stepped(folder))
        (witness,) = set(witnesses()) - before
        status = Path(f"/proc/{witness}/status").read_text()
        assert int(re.search(r"VmRSS:\s*(\d+)", status)[1]) < 10 << 10
        # Not in the session of the run, and no descendant of it.
        assert os.getsid(witness) != process.pid
        os.kill(process.pid, signal.SIGKILL)
        # The pipe closes: who reads the output of the run need not wait.
        said, _ = process.communicate(timeout=10)
        assert process.returncode == -9
        wait_for(lambda: witness not in witnesses(), 5)
    (line,) = last_words(said)
    assert f"the run (pid {process.pid}) was ended by SIGKILL from outside" in line
    assert re.search(r"This happened in step \d+ of 100000 \((data|forward|backward|opt|bet)", line)
    assert (folder / "log/last_words.txt").read_text() == line + "\n"


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (signal.SIGKILL, "was ended by SIGKILL from outside"),
        pytest.param(signal.SIGSEGV, "a crash in native code", marks=pytest.mark.nightly),
        pytest.param(signal.SIGBUS, "/dev/shm has", marks=pytest.mark.nightly),
        pytest.param(signal.SIGABRT, "native code gave up", marks=pytest.mark.nightly),
    ],
)
def test_when_all_ranks_are_killed_at_once_one_line_says_so(
    shared_folder, tmp_path, number, expected
):
    folder = tmp_path / "run"
    words = words_for(shared_folder, folder)
    place = words.index("--output_dir")
    del words[place : place + 2]
    with launched(2, folder, *words) as run:
        ranks = run.ranks()
        run.wait_for_step(2)
        for pid in ranks.values():
            os.kill(pid, signal.SIGSTOP)
        for pid in ranks.values():
            os.kill(pid, number)
        for pid in ranks.values():
            os.kill(pid, signal.SIGCONT)
        assert run.wait(60) == 256 - number
        wait_for(run.own_words, 10)
        (said,) = run.own_words()
    assert expected in said
    assert re.match(r"bigft: rank [01] \(pid \d+\) was ended", said)
    assert "This happened in step" in said


@needs_groups
def test_a_single_rank_that_ran_out_of_host_memory_gets_the_numbers(shared_folder, tmp_path):
    """The kernel ends it while the model is loaded: nobody else is there to say so."""
    group = GROUPS / f"bigft-words-{os.getpid()}"
    group.mkdir()
    folder = tmp_path / "run"
    try:
        (group / "memory.limit_in_bytes").write_text(str(320 << 20))
        enter = f'echo 0 > {group}/cgroup.procs; exec "$@"'
        words = [*words_for(shared_folder, folder), "--plan.check", "warn"]
        with running(words, "sh", "-c", enter, "sh") as process:
            said, _ = process.communicate(timeout=120)
        assert process.returncode == -9
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text(), 10)
        group.rmdir()
    (line,) = last_words(said)
    assert "was ended by the kernel (SIGKILL) because host memory ran out" in line
    assert "its control group has 320.00 MiB, of which" in line
    assert "by this rank)" in line
    assert "the plan was" in line
    assert "zero3_nvme.json" in line
    assert "This happened " in line


@pytest.mark.nightly
def test_too_little_address_space_is_host_memory(shared_folder, tmp_path):
    """RLIMIT_AS, as `ulimit -v` sets it: torch's allocator fails instead of the kernel."""
    model = tmp_path / "model"
    shutil.copytree(shared_folder / "model", model)
    (model / "model.safetensors").unlink()
    config = json.loads((model / "config.json").read_text())
    # One matrix of 1 GiB, in fp32 or bf16 at least half of it.
    config |= {"hidden_size": 8192, "intermediate_size": 32768, "num_hidden_layers": 1}
    (model / "config.json").write_text(json.dumps(config))
    with running(words_for(shared_folder, tmp_path / "run", model=model)) as process:
        said = ""
        while "rows," not in said:
            said += process.stdout.readline()
        used = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0]) * 4096
        limit = used + (400 << 20)
        resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
        said += process.communicate(timeout=120)[0]
    (line,) = last_words(said)
    assert process.returncode == 7, said[-3000:]
    assert "host memory is exhausted" in line
    assert "Traceback" not in said


@pytest.mark.nightly
def test_a_stopped_rank_is_named_at_the_time_limit(shared_folder, tmp_path):
    folder = tmp_path / "run"
    words = words_for(shared_folder, folder)
    place = words.index("--output_dir")
    del words[place : place + 2]
    # Without the limits of --watch, which would be first.
    words += ["--watch.steady_seconds", "0", "--watch.lost_seconds", "0"]
    with launched(2, folder, *words, DEEPSPEED_TIMEOUT="1") as run:
        ranks = run.ranks()
        run.wait_for_step(2)
        os.kill(ranks[1], signal.SIGSTOP)
        code = run.wait(180)
        said = run.own_words()
    assert code == 6, run.said()[-3000:]
    (line,) = said
    assert "a collective waited for a rank that did not come" in line
    assert re.search(
        rf"rank 1 on host \S+ \(pid {ranks[1]}, [\d.]+ [GM]iB\) stands in step \d+ of", line
    )
    assert "stopped by a signal (SIGSTOP)" in line
    assert "most recent call first" in (folder / "log/rank_00.log").read_text()


@pytest.mark.nightly
def test_no_compiler_is_said_before_anything_else(shared_folder, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "ninja", "python"):
        found = subprocess.run(["which", name], capture_output=True, text=True, env=environment())
        (tools / name).symlink_to(found.stdout.strip())
    words = words_for(shared_folder, tmp_path / "run")
    with running(words, PATH=str(tools), TORCH_EXTENSIONS_DIR=str(tmp_path / "ext")) as process:
        said, _ = process.communicate(timeout=120)
    (line,) = last_words(said)
    assert process.returncode == 6
    assert "apt-get install g++" in line


@pytest.mark.nightly
def test_a_compiler_that_fails_is_quoted_in_one_line(shared_folder, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    broken = tools / "c++"
    broken.write_text(
        "#!/bin/sh\ncase $1 in *version*) exec g++ $1;; esac\n"
        "echo 'x.cpp:3:10: fatal error: cstdlib: No such file' >&2; exit 1\n"
    )
    broken.chmod(0o755)
    words = words_for(shared_folder, tmp_path / "run")
    changes = {"CXX": str(broken), "TORCH_EXTENSIONS_DIR": str(tmp_path / "ext")}
    with running(words, **changes) as process:
        said, _ = process.communicate(timeout=120)
    (line,) = last_words(said)
    assert process.returncode == 6, said[-3000:]
    assert "fatal error: cstdlib: No such file. A compiler is missing or broken" in line
    assert "FAILED:" not in said
    assert "FAILED:" in (tmp_path / "run/log/rank_00.log").read_text()


@pytest.mark.nightly
@needs_mounts
def test_a_full_shared_memory_is_named(shared_folder, tmp_path):
    """A bus error for want of pages in /dev/shm: what is mapped there lies beyond its size."""
    folder = tmp_path / "run"
    mount = 'mount -t tmpfs -o size=1m tmpfs /dev/shm; exec "$@"'
    before = ("unshare", "-m", "sh", "-c", mount, "sh")
    with running(words_for(shared_folder, folder), *before) as process:
        wait_for(lambda: has_stepped(folder))
        # The same file system, from outside its namespace; full for longer than a look takes.
        shared = Path("/proc", str(process.pid), "root", "dev/shm")
        with contextlib.suppress(OSError):
            (shared / "others").write_bytes(b"x" * (2 << 20))
        time.sleep(2)
        os.kill(process.pid, signal.SIGBUS)
        said, _ = process.communicate(timeout=30)
    (line,) = last_words(said)
    assert process.returncode == -7
    assert "/dev/shm has 0 B free of 1.00 MiB; give the container more" in line

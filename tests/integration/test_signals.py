"""Signals and deaths under the real launcher: exit codes, words, and what is committed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launched import Launched, checkpoints, launched

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.distributed


@pytest.fixture
def words(shared_folder: Path) -> list[Any]:
    """A run of a tiny model that would go on for hours."""
    return [
        "--config", ROOT / "ds_configs/zero3.json",
        "--model", shared_folder / "model",
        "--data", shared_folder / "chat.jsonl",
        "--data.loading.cache_dir", shared_folder / "cache",
        "--data.eval_fraction", 0.1,
        "--evaluation.eval_on_start", "false",
        "--max_length", 64,
        "--max_steps", 100_000,
    ]  # fmt: skip


def _send(number: int, *names: str) -> Callable[[Launched], None]:
    def send(run: Launched) -> None:
        ranks = run.ranks()
        pids = {"runner": run.runner.pid, "launcher": run.launcher}
        pids |= {f"rank {rank}": pid for rank, pid in ranks.items()}
        for name in names:
            os.kill(pids[name], number)

    return send


def _send_group(number: int) -> Callable[[Launched], None]:
    """As a terminal does with Ctrl-C."""
    return lambda run: os.killpg(run.runner.pid, number)


BOTH = ("rank 0", "rank 1")
STOPS = {
    # The code is that of `deepspeed` itself; all ranks leave with 75. See docs/guides/faults.md.
    "one rank, SIGTERM": (_send(signal.SIGTERM, "rank 1"), "SIGTERM", 75),
    "all ranks, SIGUSR1": (_send(signal.SIGUSR1, *BOTH), "SIGUSR1", 75),
    "rank 0, SIGINT": (_send(signal.SIGINT, "rank 0"), "SIGINT", 75),
    "launcher, SIGTERM": (_send(signal.SIGTERM, "launcher"), "SIGTERM", 1),
    "launcher, SIGINT": (_send(signal.SIGINT, "launcher"), "SIGTERM", 1),
    "launcher, SIGKILL": (_send(signal.SIGKILL, "launcher"), "the end of its launcher", 0),
    "runner, SIGTERM": (_send(signal.SIGTERM, "runner"), "the end of its launcher", -15),
    "runner, SIGKILL": (_send(signal.SIGKILL, "runner"), "the end of its launcher", -9),
    "terminal, SIGINT": (_send_group(signal.SIGINT), "SIGINT", -2),
    "everybody, SIGTERM": (_send_group(signal.SIGTERM), "SIGTERM", -15),
    "everybody, SIGUSR1": (_send_group(signal.SIGUSR1), "SIGUSR1", -10),
}
ALWAYS = ("one rank, SIGTERM",)


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[] if c in ALWAYS else [pytest.mark.nightly]) for c in STOPS],
)
def test_a_signal_stops_all_ranks_with_everything_committed(case, words, tmp_path):
    act, name, code = STOPS[case]
    folder = tmp_path / "run"
    with launched(2, folder, *words) as run:
        ranks = run.ranks()
        run.wait_for_step(3)
        act(run)
        found = run.wait()
        run.wait_for_all_gone([*ranks.values()], 40)
        (said,) = run.own_words()
        steps = run.rows()[-1]["step"]
    # After Ctrl-C it is a race which of its own two handlers DeepSpeed's runner leaves through.
    assert found == code or (case == "terminal, SIGINT" and found == 1)
    assert said.startswith(f"bigft: stopped by {name} at step {steps} of 100000, committed")
    assert checkpoints(folder) == [f"step_{steps:08d}"]
    assert "Traceback" not in run.said() or case == "terminal, SIGINT"
    assert not list((folder / "checkpoints").glob(".tmp-*"))


@pytest.mark.nightly
def test_a_launcher_that_ignores_the_notice_passes_75_on(words, tmp_path):
    """`trap '' USR1` before `srun deepspeed`, as docs/guides/faults.md says."""
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with launched(2, tmp_path / "run", *words) as run:
            signal.signal(signal.SIGUSR1, before)
            run.wait_for_step(3)
            os.killpg(run.runner.pid, signal.SIGUSR1)
            assert run.wait() == 75
            (said,) = run.own_words()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert "stopped by SIGUSR1" in said


@pytest.mark.nightly
def test_a_stopped_run_goes_on_like_one_that_was_not_stopped(words, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    words = [*words[:-1], 12]
    with launched(2, whole, *words) as run:
        assert run.wait() == 0
        expected = [(row["step"], row["loss"], row["grad_norm"]) for row in run.rows()]
    with launched(2, folder, *words) as run:
        run.wait_for_step(2)
        os.kill(run.ranks()[1], signal.SIGUSR1)
        assert run.wait() == 75
    with launched(2, folder, *words) as run:
        assert run.wait() == 0
        found = [(row["step"], row["loss"], row["grad_norm"]) for row in run.rows()]
    assert found == expected
    names = ("model.safetensors", "config.json")
    for name in names:
        assert (folder / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()


@pytest.mark.nightly
@pytest.mark.parametrize("seconds", [1.5, 3, 4.5, 6, 7.5, 9, 10.5, 12])
@pytest.mark.parametrize("names", [("rank 0",), ("rank 1",), BOTH], ids=lambda names: names[-1])
def test_a_signal_during_the_start_loses_nothing(words, tmp_path, seconds, names):
    """At any moment: imports, rendezvous, operators, tokenising, loading, the first steps."""
    folder = tmp_path / "run"
    with launched(2, folder, *words) as run:
        ranks = run.ranks()
        time.sleep(seconds)
        _send(signal.SIGTERM, *names)(run)
        code = run.wait(60)
        run.wait_for_all_gone([*ranks.values()], 20)
        said = run.own_words()
        steps = [row["step"] for row in run.rows()]
    if not said:
        # Python itself was still starting: nothing of ours was there to hear it.
        assert code == 256 - signal.SIGTERM
        assert not steps
        return
    assert code == 75, run.said()[-3000:]
    assert all("stopped by" in line for line in said), said
    assert checkpoints(folder) == [f"step_{step:08d}" for step in steps[-1:]]


@pytest.mark.nightly
def test_a_signal_during_tokenising_leaves_no_process_behind(words, tmp_path):
    """Large data, tokenised by several processes on rank 0, for which rank 1 waits."""
    row = '{"text": "' + "some words to cut into tokens, again and again " * 20 + '"}\n'
    data = tmp_path / "large.jsonl"
    data.write_text(row * 100_000)
    place = words.index("--data") + 1
    words[place] = data
    words += ["--data.loading.num_proc", 2]
    words[words.index("--data.loading.cache_dir") + 1] = tmp_path / "cache"
    folder = tmp_path / "run"
    with launched(2, folder, *words) as run:
        ranks = run.ranks()
        run.wait_for(lambda: len(run.descendants()) >= 5, "the tokenising processes")
        everybody = run.descendants()
        os.kill(ranks[1], signal.SIGTERM)
        assert run.wait(60) == 75
        run.wait_for_all_gone(everybody, 20)
        assert all("stopped by" in line for line in run.own_words())


DEATHS = {
    "rank 1, SIGKILL": (signal.SIGKILL, 1, "was ended by SIGKILL from outside"),
    "rank 0, SIGKILL": (signal.SIGKILL, 0, "was ended by SIGKILL from outside"),
    "rank 1, SIGSEGV": (signal.SIGSEGV, 1, "was ended by SIGSEGV: a crash in native code"),
    "rank 0, SIGBUS": (signal.SIGBUS, 0, "/dev/shm has"),
    "rank 1, SIGABRT": (signal.SIGABRT, 1, "was ended by SIGABRT"),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, marks=[] if c == "rank 1, SIGKILL" else [pytest.mark.nightly])
        for c in DEATHS
    ],
)
def test_a_death_takes_the_other_ranks_down_with_one_message(case, words, tmp_path):
    number, rank, expected = DEATHS[case]
    with launched(2, tmp_path / "run", *words) as run:
        ranks = run.ranks()
        run.wait_for_step(3)
        os.kill(ranks[rank], number)
        run.wait_for_all_gone([*ranks.values()], 10)
        code = run.wait(40)
        said = run.own_words()
    # The launcher returns what it sees first: our code, or minus the signal.
    assert code in (6, 256 - number)
    assert len(said) == 1, said
    assert said[0].startswith(f"bigft: rank {rank} (pid {ranks[rank]}) ")
    assert expected in said[0]


GROUPS = Path("/sys/fs/cgroup/memory")


@pytest.mark.nightly
@pytest.mark.skipif(
    not os.access(GROUPS, os.W_OK), reason="needs root and control groups of version 1"
)
def test_a_rank_that_needs_too_much_memory_is_named_with_the_numbers(words, tmp_path):
    """A control group that somebody fills up, and in it a rank that the kernel prefers."""
    group = GROUPS / "bigft-test"
    group.mkdir(exist_ok=True)
    try:
        (group / "memory.limit_in_bytes").write_text(str(512 << 20))
        with launched(2, tmp_path / "run", *words) as run:
            ranks = run.ranks()
            run.wait_for_step(3)
            for pid in ranks.values():
                (group / "cgroup.procs").write_text(str(pid))
            Path(f"/proc/{ranks[1]}/oom_score_adj").write_text("1000")
            # Long enough for the ranks to look at their memory again.
            time.sleep(3)
            # The kernel's second choice.
            hungry = (
                "open('/proc/self/oom_score_adj', 'w').write('500');"
                f"open({str(group / 'cgroup.procs')!r}, 'w').write('0'); b'x' * (1 << 30)"
            )
            subprocess.run([sys.executable, "-c", hungry], timeout=60)
            run.wait_for_all_gone([*ranks.values()], 10)
            run.wait(40)
            (said,) = run.own_words()
        assert (group / "cgroup.procs").read_text() == ""
        assert f"rank 1 (pid {ranks[1]}) was ended by the kernel (SIGKILL)" in said
        assert "because host memory ran out: its control group has 512.00 MiB, of which" in said
        assert "adamw_8bit" in said
    finally:
        group.rmdir()

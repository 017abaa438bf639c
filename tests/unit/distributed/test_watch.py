"""A rank that dies takes the others with it, in words; one that leaves politely does not.

Real processes watch real processes; only what they would do besides is left out.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bigft.distributed.signals import StopSignals
from bigft.distributed.watch import Watch

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = str(ROOT / "tests/support/watch_process.py")
KERNEL = tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])


class Host:
    """Processes of one test, all gone after it."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[str]] = []

    def victim(self, code: str = "import time; time.sleep(60)") -> subprocess.Popen[str]:
        return self._start([sys.executable, "-c", code])

    def rank(self, rank: int, mode: str, *peers: str) -> subprocess.Popen[str]:
        return self._start([sys.executable, SCRIPT, str(rank), mode, *peers])

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.started.append(process)
        return process


@pytest.fixture
def host() -> Iterator[Host]:
    found = Host()
    yield found
    for process in found.started:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()


def wait_ready(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"


def finish(process: subprocess.Popen[str], seconds: float = 40) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "was ended by SIGKILL from outside"),
        (signal.SIGSEGV, "was ended by SIGSEGV: a crash in native code"),
        (signal.SIGBUS, "/dev/shm has"),
    ],
)
@pytest.mark.parametrize(
    "is_collected",
    [
        False,
        pytest.param(
            True,
            marks=pytest.mark.skipif(
                KERNEL < (6, 15), reason="kernel before 6.15: the status is lost with the process"
            ),
        ),
    ],
)
def test_a_death_is_explained_once_and_all_leave(host, number, words, is_collected):
    """Also when the launcher has collected the exit status before anybody looked at it."""
    dead = host.victim()
    ranks = [host.rank(n, "blocked", f"2:{dead.pid}") for n in (0, 1)]
    # Rank 1 knows of rank 0, which will speak.
    ranks[1].kill()
    ranks[1] = host.rank(1, "blocked", f"0:{ranks[0].pid}", f"2:{dead.pid}")
    wait_ready(ranks[0], ranks[1])
    if is_collected:
        for rank in ranks:
            os.kill(rank.pid, signal.SIGSTOP)
    dead.send_signal(number)
    dead.wait()
    for rank in ranks:
        os.kill(rank.pid, signal.SIGCONT)
    started = time.monotonic()
    ends = [finish(rank) for rank in ranks]
    assert time.monotonic() - started < 10
    assert [code for code, _, _ in ends] == [6, 6]
    said = [line for _, _, err in ends for line in err.splitlines()]
    assert len(said) == 1, said
    assert said[0].startswith(f"bigft: rank 2 (pid {dead.pid}) was")
    assert words in said[0]
    assert all("cleaned up" in out for _, out, _ in ends)


def test_somebody_speaks_also_when_the_speaker_dies(host):
    dead, speaker = host.victim(), host.victim()
    rank = host.rank(3, "blocked", f"0:{speaker.pid}", f"2:{dead.pid}")
    wait_ready(rank)
    dead.kill()
    time.sleep(0.5)
    speaker.kill()
    code, _, err = finish(rank)
    assert code == 6
    assert f"rank 2 (pid {dead.pid})" in err


def test_an_end_in_order_is_no_alarm(host):
    done = host.victim("import time; time.sleep(6)")
    rank = host.rank(0, "loop", f"1:{done.pid}")
    wait_ready(rank)
    done.wait()
    time.sleep(1.5)
    assert rank.poll() is None
    rank.send_signal(signal.SIGTERM)
    code, out, err = finish(rank)
    assert (code, err) == (0, "")
    assert "asked by SIGTERM" in out


def test_a_rank_with_an_error_of_its_own_has_the_word(host):
    """The others have ten seconds to leave by themselves; then they take its code, silently."""
    failed = host.victim("import time; time.sleep(6); raise SystemExit(5)")
    stuck = host.rank(0, "blocked", f"1:{failed.pid}")
    broken = host.rank(2, "fail", f"1:{failed.pid}")
    wait_ready(stuck, broken)
    failed.wait()
    # Its collective has failed: it need not wait.
    started = time.monotonic()
    assert finish(broken)[::2] == (5, "")
    assert time.monotonic() - started < 8
    assert finish(stuck)[::2] == (5, "")


def test_an_error_that_nobody_explains_is_shown(host):
    living = host.victim()
    rank = host.rank(0, "fail", f"1:{living.pid}")
    code, _, err = finish(rank)
    assert code == 1
    assert "Connection closed by peer" in err


def test_a_stop_of_another_rank_stops_this_one(host):
    stopped = host.victim("import time; time.sleep(6); raise SystemExit(75)")
    rank = host.rank(0, "sleep", f"1:{stopped.pid}")
    wait_ready(rank)
    code, _, err = finish(rank)
    assert code == 75
    assert "raised: stopped by a signal to rank 1 before its first step" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_obeyed_at_once_where_nothing_waits_for_it(host, number):
    rank = host.rank(0, "sleep")
    wait_ready(rank)
    rank.send_signal(number)
    code, _, err = finish(rank)
    assert code == 75
    assert f"raised: stopped by {signal.Signals(number).name} before its first step" in err


def test_a_signal_ends_a_process_that_does_not_look_at_it(host):
    rank = host.rank(0, "blocked")
    wait_ready(rank)
    rank.send_signal(signal.SIGTERM)
    code, out, err = finish(rank)
    assert code == 75
    assert err.startswith("bigft: stopped by SIGTERM before its first step")
    assert "cleaned up" in out


def test_the_same_signal_twice_ends_also_a_process_that_does_not_look(host):
    rank = host.rank(0, "blocked")
    wait_ready(rank)
    rank.send_signal(signal.SIGINT)
    time.sleep(1.5)
    rank.send_signal(signal.SIGINT)
    assert finish(rank)[0] == 130


def test_python_that_cannot_watch_processes_still_runs(monkeypatch, caplog):
    """As one that was built for an old system: there is a line in the log, and no error."""
    monkeypatch.delattr(os, "pidfd_open")
    watch = Watch(StopSignals())
    watch._watch([(os.getpid(), 1)])
    assert watch._watched == {}
    assert "cannot be watched" in caplog.text


def test_a_bug_in_the_watch_does_not_end_it(host, tmp_path):
    """Whoever makes no sound any more is taken for stuck by the others."""
    victim = host.victim()
    rank = host.rank(1, "confused", f"0:{victim.pid}")
    wait_ready(rank)
    victim.kill()
    code, _, err = finish(rank)
    assert code == 6
    assert "rank 0" in err
    assert "was ended by SIGKILL" in err

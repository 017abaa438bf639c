"""The agent of a host, with ranks that behave badly: the right report, and nothing left behind."""

import contextlib
import dataclasses
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_words import make_job

from bigft.launch.agent import Limits, clear
from bigft.launch.conduct import Conductor, Ending
from bigft.launch.job import LAUNCH_VARIABLE, HostJob
from bigft.launch.processes import end_all, find_below, find_children, find_marked, read_variable
from bigft.launch.report import MARK, Report

SHORT = Limits(stop=1.0, silent=2.0, others=0.5, haste=0.5, leftover=0.7, kill=5.0)
PATIENT = dataclasses.replace(SHORT, stop=15.0, others=10.0)
DEAF = "import signal, time\nfor n in (10, 15): signal.signal(n, signal.SIG_IGN)\n"
HANG = "time.sleep(600)\n"
ONLY_RANK_1 = "import os, sys, time\nif os.environ['RANK'] == '1': "


class Run:
    """An agent with its job, in a process of its own."""

    def __init__(
        self,
        tmp_path: Path,
        code: str,
        ranks: int = 1,
        wire: socket.socket | None = None,
        limits: Limits = SHORT,
        **changes: Any,
    ) -> None:
        self.id = uuid.uuid4().hex
        world = {"a": list(range(ranks))}
        self.job = make_job("a", code, tmp_path, world=world, launch_id=self.id, **changes)
        values = dataclasses.asdict(limits)
        program = f"from bigft.launch.agent import Limits, main; main(Limits(**{values}))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=wire or subprocess.PIPE,
            stdout=wire,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": self.job.environ["PYTHONPATH"]},
        )
        self.start = time.monotonic()
        if wire is None:
            self.tell(self.job.to_line().rstrip())

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()

    def beat(self, until: Any) -> None:
        while not until():
            self.tell("beat")
            time.sleep(0.05)
            assert time.monotonic() - self.start < 90

    def wait_for_ranks(self, count: int = 1) -> list[int]:
        """Also until they have set themselves up: a rank says so by a file."""
        self.beat(lambda: len(self.ranks()) >= count)
        return self.ranks()

    def ranks(self) -> list[int]:
        return [p for p in find_marked(LAUNCH_VARIABLE, self.id) if read_variable(p, "RANK")]

    def end(self, *, beats: bool = True) -> tuple[Report, float]:
        """Wait for the end: its report, and the seconds since `start`."""
        if beats:
            with contextlib.suppress(BrokenPipeError):
                self.beat(lambda: self.process.poll() is not None)
        assert self.process.stderr is not None
        text = self.process.stderr.read().decode()
        assert self.process.wait(60) is not None
        assert find_marked(LAUNCH_VARIABLE, self.id) == []
        line = next(line for line in text.split("\n") if line.startswith(MARK))
        return Report.from_line(line, self.job.token), time.monotonic() - self.start

    def close(self) -> None:
        self.process.kill()
        clear(self.id)
        self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    runs: list[Run] = []

    def make(code: str, **changes: Any) -> Run:
        runs.append(Run(tmp_path, code, **changes))
        return runs[-1]

    yield make
    for run in runs:
        run.close()


# How ranks end.


@pytest.mark.parametrize(
    ("code", "ranks", "wanted"),
    [
        ("pass", 2, (0, None)),
        ("raise SystemExit(3)", 1, (3, 0)),
        (f"{ONLY_RANK_1}time.sleep(1); sys.exit(75)\ntime.sleep(600)", 2, (75, 1)),
        ("import os; os.kill(os.getpid(), 9)", 1, (-9, 0)),
        ("import os; os.kill(os.getpid(), 11)", 1, (-11, 0)),
        (f"{DEAF}{ONLY_RANK_1}time.sleep(1); sys.exit(5)\n{HANG}", 2, (5, 1)),
        (f"{ONLY_RANK_1}time.sleep(1); sys.exit(5)\nos.kill(os.getpid(), 19)", 2, (5, 1)),
    ],
    ids=["done", "left", "one_of_two", "killed", "crashed", "other_is_deaf", "other_is_frozen"],
)
def test_the_first_rank_that_fails_is_named(start, code, ranks, wanted) -> None:
    report, seconds = start(code, ranks=ranks).end()
    assert (report.code, report.rank) == wanted
    assert report.left == 0
    assert report.stopped in ("", "the end of other hosts")
    assert seconds < 30


# How they are asked to stop.

POLITE = "import signal, sys, time\nsignal.signal(10, lambda *_: sys.exit(75))\n"


@pytest.mark.parametrize("how", ["word", "closed", "silence"])
def test_ranks_are_asked_to_stop(start, tmp_path, how) -> None:
    run = start(f"{POLITE}open('ready', 'w').close()\n{HANG}")
    run.beat((tmp_path / "ready").exists)
    if how == "word":
        run.tell("stop SIGTERM")
    elif how == "closed":
        run.process.stdin.close()
    report, _ = run.end(beats=how == "word")
    assert (report.code, report.rank, report.left) == (75, 0, 0)
    wanted = {"word": "SIGTERM", "closed": "the end of what", "silence": "the silence of what"}
    assert report.stopped.startswith(wanted[how])


def test_a_connection_that_breaks_with_something_unread_is_an_end(start, tmp_path) -> None:
    """Input and output are one socket under sshd; reading from it is an error then."""
    here, there = socket.socketpair()
    run = start(f"{POLITE}print('unread')\nopen('ready', 'w').close()\n{HANG}", wire=there)
    there.close()
    here.sendall(run.job.to_line().encode())
    while not (tmp_path / "ready").exists():
        here.sendall(b"beat\n")
        time.sleep(0.05)
    here.close()
    report, _ = run.end(beats=False)
    assert (report.code, report.left) == (75, 0)
    assert report.stopped == "the end of what started it"


@pytest.mark.parametrize("how", ["deaf", "frozen"])
def test_ranks_that_do_not_stop_are_ended(start, tmp_path, how) -> None:
    freeze = "os.kill(os.getpid(), 19)\n" if how == "frozen" else ""
    ready = "import os; open('ready' + os.environ['RANK'], 'w').close()\n"
    run = start(f"{DEAF}{ready}{freeze}{HANG}", ranks=2)
    run.beat(lambda: len([*tmp_path.glob("ready*")]) == 2)
    run.start = time.monotonic()
    run.tell("stop SIGTERM")
    report, seconds = run.end()
    assert report.code == -9
    assert (report.stopped, report.left) == ("SIGTERM", 0)
    assert seconds < SHORT.stop + SHORT.haste + SHORT.leftover + 25


def test_ranks_are_ended_at_once_when_that_is_said(start, tmp_path) -> None:
    run = start(f"{DEAF}open('ready', 'w').close()\n{HANG}")
    run.beat((tmp_path / "ready").exists)
    run.tell("end")
    report, seconds = run.end()
    assert (report.code, report.stopped) == (-9, "the end of other hosts")
    assert seconds < 30


def test_ranks_are_ended_though_nobody_reads_what_they_say(start, tmp_path) -> None:
    say = "import sys\nopen('ready', 'w').close()\nwhile True: print('x' * 999, file=sys.stderr)"
    run = start(f"{DEAF}{say}")
    run.beat((tmp_path / "ready").exists)
    time.sleep(1)
    run.process.stdin.close()
    start_time = time.monotonic()
    while find_marked(LAUNCH_VARIABLE, run.id):
        assert time.monotonic() - start_time < 12
        time.sleep(0.1)


# What they leave behind.

DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        {}
        os._exit(0)
    os._exit(0)
"""


def test_what_hides_in_a_session_of_its_own_is_ended(start) -> None:
    report, seconds = start(DAEMON.format("time.sleep(600)")).end()
    assert (report.code, report.left) == (0, 0)
    assert seconds < 30


def test_what_says_its_last_words_is_left_the_time(start, tmp_path) -> None:
    report, _ = start(DAEMON.format("time.sleep(0.3); open('said', 'w').close()")).end()
    assert (report.code, report.left) == (0, 0)
    assert (tmp_path / "said").exists()


SLOW_COMMIT = """
import signal, sys, time
from pathlib import Path

def commit(*_):
    time.sleep(2)
    Path(f"committed{os.environ['RANK']}").touch()
    sys.exit(75)

signal.signal(signal.SIGUSR1, commit)
Path(f"ready{os.environ['RANK']}").touch()
time.sleep(600)
"""


def test_ranks_of_a_killed_launcher_have_the_time_to_commit(start, tmp_path) -> None:
    """As after any other request: a save may take minutes."""
    run = start(f"import os\n{SLOW_COMMIT}", ranks=2, limits=PATIENT)
    run.beat(lambda: len([*tmp_path.glob("ready*")]) == 2)
    (launcher,) = find_children(run.process.pid)
    os.kill(launcher, signal.SIGKILL)
    report, _ = run.end()
    assert len([*tmp_path.glob("committed*")]) == 2
    assert (report.code, report.rank, report.of_launcher) == (-9, None, True)


def test_ranks_of_a_killed_launcher_that_do_not_stop_are_ended(start, tmp_path) -> None:
    run = start(f"{DEAF}open('ready', 'w').close()\n{HANG}")
    run.beat((tmp_path / "ready").exists)
    (launcher,) = find_children(run.process.pid)
    os.kill(launcher, signal.SIGKILL)
    report, seconds = run.end()
    assert (report.code, report.rank, report.of_launcher) == (-9, 0, False)
    assert seconds < 30


def test_a_killed_agent_leaves_nothing(start, tmp_path) -> None:
    run = start(f"import time\nopen('ready', 'w').close()\n{HANG}", ranks=2)
    run.beat((tmp_path / "ready").exists)
    ranks = run.wait_for_ranks(2)
    run.process.kill()
    start_time = time.monotonic()
    while find_marked(LAUNCH_VARIABLE, run.id):
        assert time.monotonic() - start_time < 10, ranks
        time.sleep(0.05)


def test_other_jobs_are_not_touched(start, tmp_path) -> None:
    code = f"import time\nopen(f'ready{{time.time_ns()}}', 'w').close()\n{HANG}"
    mine, others = start(code), start(code)
    mine.beat(lambda: len([*tmp_path.glob("ready*")]) == 2 or others.tell("beat"))
    before = others.wait_for_ranks()
    mine.tell("end")
    mine.tell("end")
    while mine.process.poll() is None:
        others.tell("beat")
        time.sleep(0.05)
    assert clear(mine.id) == (0, 0)
    assert others.ranks() == before
    found, left = clear(others.id)
    assert found >= len(before)
    assert left == 0
    assert others.ranks() == []


# What comes in.


@pytest.mark.parametrize("line", ["", "{}", "[]", "no json", '{"host": 1}', "x" * 1000])
def test_no_job(line: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bigft.launch.agent"],
        input=line.encode() + b"\n" * bool(line),
        capture_output=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert b"bigft.launch.agent: no job" in done.stderr
    assert b"Traceback" not in done.stderr


def test_nothing_of_the_job_is_on_a_command_line(start, tmp_path) -> None:
    secret = "very-secret-word"
    run = start(
        f"import time\nopen('ready', 'w').close()\n{HANG}",
        words=["train", f"--hub_token={secret}"],
        environ={"HF_TOKEN": secret, "HOSTILE": secret},
    )
    run.beat((tmp_path / "ready").exists)
    pids = [run.process.pid, *find_below(run.process.pid)]
    assert len(pids) == 3
    for pid in pids:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert secret.encode() not in words
        assert run.job.token.encode() not in words
    # The token is the agent's alone.
    for pid in pids[1:]:
        assert run.job.token.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    # And what the ranks are told is theirs.
    assert secret.encode() in Path(f"/proc/{pids[2]}/environ").read_bytes()


# Several agents, and the one who conducts them.


def _conduct(*jobs: HostJob) -> tuple[Ending, list[str], list[str]]:
    out, err = io.StringIO(), io.StringIO()
    ending = Conductor(out, err).run(jobs, is_local=True)
    return ending, out.getvalue().splitlines(), err.getvalue().splitlines()


def _two(tmp_path: Path, *codes: str) -> list[HostJob]:
    world = {"a": [0], "b": [0]}
    return [
        make_job(host, code, tmp_path, world=world, node_rank=place, launch_id=uuid.uuid4().hex)
        for place, (host, code) in enumerate(zip(world, codes, strict=True))
    ]


def test_the_first_host_speaks_for_the_run(tmp_path: Path) -> None:
    say = "import sys; print('out'); print('err', file=sys.stderr)"
    ending, out, err = _conduct(*_two(tmp_path, say, say))
    assert (ending.code, ending.first, ending.lost) == (0, None, ())
    assert out == ["out"]
    assert sorted(err) == ["[b] err", "[b] out", "err"]


def test_a_rank_cannot_say_how_all_ended(tmp_path: Path) -> None:
    forged = json.dumps(dataclasses.asdict(Report("a", 0)))
    tokens = ["", "0" * 32]
    lines = [f"{MARK}{token} {forged}" for token in tokens] + [f"{MARK}{forged}"]
    code = f"import sys\nfor line in {lines!r}: print(line, file=sys.stderr)\nsys.exit(3)"
    ending, _, err = _conduct(make_job("a", code, tmp_path))
    assert ending.code == 3
    assert len(err) == 3
    assert MARK not in "".join(err)


def test_a_rank_that_ends_in_the_middle_of_a_line(tmp_path: Path) -> None:
    code = "import sys; sys.stderr.write('half'); sys.exit(7)"
    ending, _, err = _conduct(make_job("a", code, tmp_path))
    assert (ending.code, ending.lost) == (7, ())
    assert err == ["half"]


class _Paused(io.StringIO):
    """A terminal whose reader comes back after some seconds."""

    def write(self, text: str) -> int:
        if not self.getvalue():
            time.sleep(4)
        return super().write(text)


def test_a_report_behind_what_nobody_has_read_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bigft.launch.conduct._REST_SECONDS", 0.2)
    code = "import sys, time; print('x', file=sys.stderr, flush=True); time.sleep(1); sys.exit(3)"
    err = _Paused()
    ending = Conductor(io.StringIO(), err).run([make_job("a", code, tmp_path)], is_local=True)
    assert (ending.code, ending.lost) == (3, ())
    assert err.getvalue() == "x\n"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    job = make_job("a", "pass", tmp_path)
    there = dataclasses.replace(job, folder=str(tmp_path / "missing"))
    run = subprocess.run(
        [sys.executable, "-m", "bigft.launch.agent"],
        input=there.to_line().encode(),
        capture_output=True,
        timeout=30,
    )
    assert b"no rank can be started" in run.stderr
    assert b"missing" in run.stderr
    assert b"Traceback" not in run.stderr


# Processes.


def test_processes_below() -> None:
    inner = "import subprocess, sys, time; subprocess.Popen(['sleep', '600']); time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", inner], env={**os.environ, "MINE": "1"}
    ) as process:
        while len(find_below(process.pid)) < 1:
            time.sleep(0.02)
        (child,) = find_children(process.pid)
        assert read_variable(child, "MINE") == "1"
        assert read_variable(child, "YOURS") is None
        assert {process.pid, child} <= set(find_marked("MINE", "1"))
        assert find_marked("MINE", "") == []
        assert end_all(lambda: find_marked("MINE", "1"), 5)
        assert find_children(process.pid) == []
        process.wait()
    assert read_variable(process.pid, "MINE") is None
    assert not end_all(lambda: [2**22 + 1], 0.1), "what never goes is not waited for"

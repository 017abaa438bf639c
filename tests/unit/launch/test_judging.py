"""One exit code of many ends, and whether and where a run is started again."""

import base64
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigft.launch import mpi_conduct
from bigft.launch.conduct import Ending, HostEnd, judge
from bigft.launch.hostfile import Host
from bigft.launch.job import HostJob, encode_world, plan_world
from bigft.launch.mpi_conduct import judge_mpirun
from bigft.launch.progress import Progress
from bigft.launch.restart import FUTILE_STARTS, Restarts, choose_for_restart
from bigft.launch.supervise import Hands, Launch, Supervisor, plan_jobs

CONTRACT = [1, 2, 3, 4, 5, 6, 7, 75]
SIGNALS = [-6, -7, -9, -11, -15]
LOST = "lost"
ALL: list[Any] = [0, *CONTRACT, *SIGNALS, 139, LOST]


def _ends(codes: Sequence[Any]) -> list[HostEnd]:
    return [
        HostEnd(f"h{place}", 255, is_lost=True, words="gone")
        if code == LOST
        else HostEnd(f"h{place}", code, 0)
        for place, code in enumerate(codes)
    ]


@pytest.mark.parametrize("stopped", [None, "SIGTERM"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_combination_of_ends(count: int, stopped: str | None) -> None:
    tried = 0
    for codes in itertools.product(ALL, repeat=count):
        ending = judge(_ends(codes), stopped)
        failed = [code for code in codes if code != 0]
        said = [code for code in codes if code in CONTRACT and code != 6]
        if LOST in codes and not stopped:
            # Where an agent has gone ranks are asked to stop: not by anybody who meant the run.
            said = [code for code in said if code != 75]
        assert ending.stopped == stopped
        assert len(ending.lost) == codes.count(LOST)
        assert (ending.first is None) == (not failed)
        if not failed:
            wanted = 0
        elif stopped and all(code in (75, -15) for code in failed):
            wanted = 75
        else:
            wanted = said[0] if said else 6
        assert ending.code == wanted, codes
        assert ending.code in (0, *CONTRACT), codes
        tried += 1
    assert tried == len(ALL) ** count


@pytest.mark.parametrize("number", [9, 11])
def test_what_was_killed_has_not_committed(number: int) -> None:
    """After ten minutes, a second Ctrl-C, or for want of memory in the last save."""
    ending = judge(_ends([0, -number, -number]), "SIGTERM")
    assert (ending.code, ending.first) == (6, HostEnd("h1", -number, 0))
    # One that says 75 has committed with all of them.
    assert judge(_ends([75, -number]), "SIGTERM").code == 75


def test_a_lost_host_is_never_a_success() -> None:
    for others in itertools.product([0, 75, LOST], repeat=2):
        assert judge(_ends([LOST, *others]), "SIGTERM").code != 0


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_killed_launcher_is_the_cause_of_the_stop_of_all(place: int) -> None:
    ends = _ends([75, 75])
    ends.insert(place, HostEnd("z", -9, of_launcher=True))
    ending = judge(ends, None)
    assert (ending.code, ending.first) == (75, ends[place])
    # Who has said something of its own is worth more.
    assert judge([*_ends([4]), *ends], None).code == 4


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (HostEnd("a", -9, 3), "rank 3 on a was ended by SIGKILL"),
        (HostEnd("a", -99), "a was ended by signal 99"),
        (HostEnd("a", -9, of_launcher=True), "DeepSpeed's launcher on a was ended by SIGKILL"),
        (HostEnd("a", 5, 0), "rank 0 on a left with exit code 5"),
        (HostEnd("a", 255, is_lost=True), "the connection to a has ended (without a word)"),
    ],
)
def test_an_end_in_words(end: HostEnd, words: str) -> None:
    assert end.describe() == words


# Starting again.


@pytest.mark.parametrize("code", [0, *CONTRACT])
def test_only_crashes_are_tried_again(code: int) -> None:
    assert (Restarts(3).refuse(Ending(code), 0) is None) == (code in (1, 6, 75))
    # A start that could save at first has met a full disk.
    assert (Restarts(3).refuse(Ending(code), 1) is None) == (code in (1, 5, 6, 75))


def test_not_after_somebody_has_asked_to_stop() -> None:
    assert Restarts(3).refuse(Ending(6, stopped="SIGTERM"), 1) == ""


def test_not_more_often_than_is_granted() -> None:
    restarts = Restarts(2)
    assert [restarts.refuse(Ending(6), commits) for commits in (1, 2)] == [None, None]
    assert restarts.used == 2
    assert "--max_restarts 2" in (restarts.refuse(Ending(6), 3) or "")
    assert Restarts(0).refuse(Ending(6), 0) == ""


def test_not_when_several_starts_have_brought_nothing() -> None:
    restarts = Restarts(100, commits=5)
    delays = []
    for _ in range(FUTILE_STARTS - 1):
        assert restarts.refuse(Ending(1), 5) is None
        delays.append(restarts.delay_seconds)
    assert delays == sorted(delays)
    assert delays[0] < delays[-1]
    assert "3 starts in a row" in (restarts.refuse(Ending(1), 5) or "")


def test_progress_starts_the_count_anew() -> None:
    restarts = Restarts(100)
    for commits in range(1, 50):
        # Every second start brings something; a folder that has gone takes nothing back.
        assert restarts.refuse(Ending(6), commits if commits % 2 else 0) is None
        assert restarts.delay_seconds <= 60


HOSTS = [Host("a", 2), Host("b", 2), Host("c", 4)]


@pytest.mark.parametrize(
    ("there", "least", "batch", "wanted"),
    [
        ("abc", 3, 8, "abc"),
        ("abc", 3, 7, "abc"),
        ("ab", 2, 8, "ab"),
        ("ba", 2, 8, "ab"),
        ("ac", 1, 8, "a"),
        ("ac", 2, 8, None),
        ("ac", 2, 12, "ac"),
        ("ab", 3, 8, None),
        ("", 1, 8, None),
        ("ac", 2, None, "ac"),
        ("bc", 1, 5, None),
    ],
)
def test_hosts_to_go_on_with(there, least, batch, wanted) -> None:
    found = choose_for_restart(HOSTS, set(there), least, batch)
    assert found == (None if wanted is None else [host for host in HOSTS if host.name in wanted])


@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=6),
    st.sets(st.integers(0, 5)),
    st.integers(1, 6),
    st.none() | st.integers(1, 64),
)
def test_the_batch_stays_as_it_is(slots, there, least, batch) -> None:
    hosts = [Host(str(place), count) for place, count in enumerate(slots)]
    chosen = choose_for_restart(hosts, {str(place) for place in there}, least, batch)
    if chosen is None:
        return
    assert len(chosen) >= least
    assert [host for host in hosts if host in chosen] == chosen
    assert {host.name for host in chosen} <= {str(place) for place in there}
    if batch and len(chosen) < len(hosts):
        assert batch % sum(host.slots for host in chosen) == 0


# The world, as DeepSpeed's launcher reads it.

_ASK_DEEPSPEED = """
import json, subprocess, sys
from deepspeed.launcher import launch
from deepspeed.accelerator import get_accelerator
got = []
class Started:
    pid, returncode = 1, 0
    def __init__(self, cmd, env): got.append(dict(env))
    def poll(self): return 0
subprocess.Popen = Started
launch.time.sleep = lambda seconds: None
name = get_accelerator().visible_devices_envs()[0]
told = []
for encoded, count in json.load(sys.stdin):
    for node in range(count):
        got.clear()
        sys.argv = ["launch", "--log_level=critical", "--world_info=" + encoded,
            f"--node_rank={node}", "--master_addr=x", "--master_port=1", "--no_python", "script"]
        launch.main()
        for env in got:
            device = int(env[name].split(",")[int(env["LOCAL_RANK"])])
            told.append([int(env["RANK"]), node, device, int(env["WORLD_SIZE"])])
    told.append(None)
sys.stdout.write("\\n" + json.dumps(told))
"""

WORLDS = [
    [Host("a", 2)],
    [Host("a", 2), Host("b", 2)],
    [Host("a", 1), Host("b", 4)],
    [Host("a", 3), Host("b", 2), Host("c", 4)],
    [Host("a", 5), Host("b", 3), Host("c", 7), Host("d", 2)],
    [Host("a", 2, (1, 3)), Host("b", 3, (0, 2, 5))],
    [Host("a", 1, (7,)), Host("b", 4, (3, 4, 6, 7)), Host("c", 2, (0, 1))],
]


def test_ranks_get_their_devices_in_order_from_deepspeed() -> None:
    asked = [(encode_world(plan_world(hosts)), len(hosts)) for hosts in WORLDS]
    done = subprocess.run(
        [sys.executable, "-c", _ASK_DEEPSPEED],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.rpartition("\n")[2])
    for hosts in WORLDS:
        place = told.index(None)
        found, told = told[:place], told[place + 1 :]
        devices = [(n, d) for n, host in enumerate(hosts) for d in plan_world([host])[host.name]]
        size = len(devices)
        assert found == [[rank, *pair, size] for rank, pair in enumerate(devices)]


def test_the_order_of_the_hosts_is_kept() -> None:
    hosts = [Host("z", 1), Host("a", 2)]
    encoded = encode_world(plan_world(hosts))
    assert [*json.loads(base64.urlsafe_b64decode(encoded))] == ["z", "a"]


# What every host is told.


def _launch(**changes: Any) -> Launch:
    given = {"hosts": HOSTS, "words": ["train"], "folder": "/x", "environ": {}, "launch_id": "i"}
    return Launch(**{**given, **changes})


FACTS = {
    "a": {"routes": {"b": {"address": "10.0.0.1", "interface": "eth7"}}, "free_port": 4321},
    "b": {"routes": {"a": {"address": "10.0.0.2", "interface": "eth8"}}, "free_port": 1234},
    "c": {},
}


def test_hosts_meet_at_the_first_one() -> None:
    jobs = plan_jobs(_launch(), HOSTS, FACTS)
    assert {(job.master_addr, job.master_port) for job in jobs} == {("10.0.0.1", 4321)}
    assert [job.node_rank for job in jobs] == [0, 1, 2]
    assert [job.environ.get("GLOO_SOCKET_IFNAME") for job in jobs] == ["eth7", "eth8", None]
    assert len({job.token for job in jobs}) == 3
    assert all(HostJob.from_line(job.to_line()) == job for job in jobs)


def test_what_the_user_says_counts() -> None:
    environ = {"GLOO_SOCKET_IFNAME": "ib0"}
    launch = _launch(master_addr="10.1.1.1", master_port=5555, environ=environ)
    jobs = plan_jobs(launch, HOSTS, FACTS)
    assert {(job.master_addr, job.master_port) for job in jobs} == {("10.1.1.1", 5555)}
    assert {job.environ["GLOO_SOCKET_IFNAME"] for job in jobs} == {"ib0"}


def test_what_the_user_says_of_the_first_host_is_not_for_the_second() -> None:
    jobs = plan_jobs(_launch(master_addr="10.1.1.1"), HOSTS[1:], FACTS)
    assert {job.master_addr for job in jobs} == {"b"}


# A whole launch, without hosts.


class _Stage:
    """Hands whose starts end as is written down, and whose clock is moved by sleeping."""

    def __init__(self, *acts: tuple[Ending, int]) -> None:
        self.acts = list(acts)
        self.now = 0.0
        self.commits = 0
        self.batch = 8
        """Of its checkpoints."""
        self.come_back = False
        """Whether hosts that were lost answer again at once."""
        self.cleared: list[list[str]] = []
        self.started: list[list[str]] = []
        self.there = ["a", "b", "c"]
        self.all_back_at = float("inf")
        self.stop_after = float("inf")
        """When somebody asks the launcher to stop."""

    def hands(self) -> Hands:
        stage = self

        class Conductor:
            def run(self, jobs: Sequence[HostJob], *, is_local: bool) -> Ending:
                stage.started.append([job.host for job in jobs])
                ending, commits = stage.acts.pop(0)
                stage.commits += commits
                if not stage.come_back:
                    stage.there = [name for name in stage.there if name not in ending.lost]
                return ending

            def stop(self, who: str) -> None:
                raise AssertionError

        def sleep(seconds: float) -> None:
            stage.now += seconds
            if stage.now >= stage.stop_after:
                stage.supervisor.stop("SIGINT")

        def find_facts(hosts: Sequence[Host]) -> dict[str, Any]:
            is_back = stage.now >= stage.all_back_at
            return {host.name: {} for host in hosts if is_back or host.name in stage.there}

        return Hands(
            find_facts=find_facts,
            find_progress=self.find_progress,
            clear=lambda hosts: self.cleared.append([host.name for host in hosts]),
            make_conductor=Conductor,  # type: ignore[arg-type]
            sleep=sleep,
            clock=lambda: self.now,
        )

    def find_progress(self, hosts: Sequence[Host]) -> Progress:
        if not hosts or not self.commits:
            return Progress()
        return Progress(self.commits, self.commits * 10, self.batch)

    def run(self, **changes: Any) -> tuple[Ending, str]:
        told: list[str] = []
        self.supervisor = Supervisor(_launch(**changes), self.hands(), told.append)
        return self.supervisor.run({}), "\n".join(told)


def test_a_crash_is_started_again_until_it_is_done() -> None:
    stage = _Stage((Ending(6), 1), (Ending(1), 1), (Ending(0), 1))
    ending, told = stage.run(max_restarts=5)
    assert ending.code == 0
    assert stage.started == [["a", "b", "c"]] * 3
    assert stage.cleared == [["a", "b", "c"]] * 2
    assert "from step 10" in told


def test_it_goes_on_without_a_lost_host_where_that_is_granted() -> None:
    stage = _Stage((Ending(6, lost=("c",)), 1), (Ending(0), 1))
    ending, told = stage.run(max_restarts=5, min_hosts=2)
    assert ending.code == 0
    assert stage.started == [["a", "b", "c"], ["a", "b"]]
    assert "going on without c" in told
    assert stage.now >= 60, "ranks behind a cut network need that long to leave"


def test_the_batch_that_the_first_start_has_chosen_decides_who_goes_on() -> None:
    """Where the first rank chooses the plan the launcher learns it from the checkpoint."""
    stage = _Stage((Ending(6, lost=("c",)), 1), (Ending(0), 1))
    stage.batch = 2
    ending, told = stage.run(max_restarts=5, min_hosts=1, global_batch=None)
    assert ending.code == 0
    assert stage.started == [["a", "b", "c"], ["a"]]
    assert "going on without b, c" in told


def test_a_host_whose_files_are_missing_is_waited_for() -> None:
    """Where each keeps its own, the others cannot resume without it: they say 5."""
    stage = _Stage((Ending(6, lost=("c",)), 1), (Ending(5), 0), (Ending(0), 1))
    stage.all_back_at = 600
    ending, told = stage.run(max_restarts=5, min_hosts=1)
    assert ending.code == 0
    assert stage.started == [["a", "b", "c"], ["a", "b"], ["a", "b", "c"]]
    assert "waiting for c: 3 hosts are needed" in told
    assert 600 <= stage.now < 630


def test_a_full_disk_of_fewer_hosts_waits_for_nobody() -> None:
    stage = _Stage((Ending(6, lost=("c",)), 1), (Ending(5), 1), (Ending(0), 1))
    ending, told = stage.run(max_restarts=5, min_hosts=1)
    assert ending.code == 0
    assert stage.started == [["a", "b", "c"], ["a", "b"], ["a", "b"]]
    assert "3 hosts are needed" not in told


def test_a_damaged_checkpoint_of_all_hosts_is_not_tried_again() -> None:
    stage = _Stage((Ending(5), 0))
    assert stage.run(max_restarts=5, min_hosts=1)[0].code == 5
    assert len(stage.started) == 1


def test_what_lost_hosts_have_committed_counts_when_they_are_back() -> None:
    """The network of the launcher itself may be what was cut."""
    gone = Ending(6, lost=("a", "b", "c"))
    stage = _Stage(*[(gone, 1)] * 5, (Ending(0), 1))
    stage.come_back = True
    ending, told = stage.run(max_restarts=9)
    assert ending.code == 0
    assert len(stage.started) == 6
    assert told.count("from the beginning") == 1
    assert "from step 40" in told


def test_it_waits_for_a_lost_host_and_gives_up() -> None:
    stage = _Stage((Ending(6, lost=("c",)), 1))
    ending, told = stage.run(max_restarts=5)
    assert ending.code == 6
    assert "waiting for c" in told
    assert "too few hosts answer" in told


def test_a_stop_between_two_starts_is_a_stop() -> None:
    stage = _Stage((Ending(6, lost=("c",)), 1))
    stage.stop_after = 30
    ending, _ = stage.run(max_restarts=5)
    assert ending.code == 75
    assert stage.now < 32
    assert len(stage.started) == 1


def test_settings_are_not_tried_again() -> None:
    stage = _Stage((Ending(2), 0))
    assert stage.run(max_restarts=5)[0].code == 2
    assert len(stage.started) == 1


def test_three_starts_without_progress_are_enough() -> None:
    stage = _Stage(*[(Ending(6), 0)] * 9)
    ending, told = stage.run(max_restarts=9)
    assert ending.code == 6
    assert len(stage.started) == 3
    assert "3 starts in a row" in told


@pytest.mark.parametrize(
    ("code", "stopped", "wanted"),
    [
        (0, None, 0),
        (2, None, 2),
        (75, "SIGTERM", 75),
        (0, "SIGTERM", 75),
        (-15, "SIGTERM", 75),
        (138, "SIGINT", 75),
        (137, "SIGINT", 6),
        (139, "SIGINT", 6),
        (-9, "SIGINT", 6),
        (53, "SIGINT", 6),
        (3, "SIGTERM", 3),
        (75, None, 75),
        (79, None, 6),
        (137, None, 6),
        (-9, None, 6),
    ],
)
def test_the_code_of_mpirun(code, stopped, wanted) -> None:
    assert judge_mpirun(code, stopped).code == wanted


def test_a_stop_before_mpirun_is_there_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["sh", "-c", "trap 'exit 75' USR1; sleep 5 & wait"]

    def find_address(host: str) -> None:
        conductor.stop("SIGTERM")

    monkeypatch.setattr(mpi_conduct, "mpi_command", lambda *_, **__: command)
    monkeypatch.setattr(mpi_conduct, "_find_own_address", find_address)
    conductor = mpi_conduct.MpiConductor("openmpi")
    ending = conductor.run(plan_jobs(_launch(), HOSTS, FACTS))
    assert (ending.code, ending.stopped) == (75, "SIGTERM")
    assert ending.seconds < 4


def test_an_mpirun_that_does_not_leave_after_a_stop_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["sh", "-c", "trap '' USR1 TERM; sleep 60"]
    monkeypatch.setattr(mpi_conduct, "mpi_command", lambda *_, **__: command)
    monkeypatch.setattr(mpi_conduct, "STOP_SECONDS", 1.0)
    monkeypatch.setattr(mpi_conduct, "_LOOK_SECONDS", 0.2)
    conductor = mpi_conduct.MpiConductor("openmpi")
    Timer(0.5, conductor.stop, ["SIGTERM"]).start()
    ending = conductor.run(plan_jobs(_launch(), HOSTS, FACTS), is_local=True)
    assert ending.stopped == "SIGTERM"
    assert 1 < ending.seconds < 10


def test_mpirun_gets_only_what_is_the_same_on_all_hosts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One value goes to all of them: with the first one's interface the others would not meet."""
    told = tmp_path / "told"
    command = ["sh", "-c", f"env > {told}"]
    monkeypatch.setattr(mpi_conduct, "mpi_command", lambda *_, **__: command)
    jobs = plan_jobs(_launch(), HOSTS, FACTS)
    names = [{"NCCL_DEBUG": "WARN", "NCCL_SOCKET_IFNAME": f"eth{n}"} for n in range(len(jobs))]
    jobs = [replace(job, environ=environ) for job, environ in zip(jobs, names, strict=True)]
    assert mpi_conduct.MpiConductor("openmpi").run(jobs, is_local=True).code == 0
    lines = told.read_text().splitlines()
    assert "NCCL_DEBUG=WARN" in lines
    assert not [line for line in lines if line.startswith("NCCL_SOCKET_IFNAME")]

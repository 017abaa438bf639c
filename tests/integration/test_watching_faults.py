"""Three hosts with two ranks each: whatever happens to one of them is named, and all leave.

Real runs on simulated hosts, with limits of seconds instead of minutes.
"""

import signal
import time
from collections.abc import Callable, Iterator

import pytest
from across_hosts import Across, across, plant, words_for
from simulated_hosts import SimulatedHosts, can_simulate

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.nightly,
    pytest.mark.skipif(not can_simulate(), reason="hosts need root, iproute2 and openssh-server"),
]


@pytest.fixture(scope="module")
def three_hosts(tmp_path_factory) -> Iterator[SimulatedHosts]:
    with SimulatedHosts(tmp_path_factory.mktemp("three"), 3) as hosts:
        yield hosts


def _kill(rank: int) -> Callable[[Across], None]:
    return lambda run: run.send(rank, signal.SIGKILL)


def _stop(rank: int) -> Callable[[Across], None]:
    return lambda run: run.send(rank, signal.SIGSTOP)


def _cut(number: int) -> Callable[[Across], None]:
    return lambda run: run.hosts.cut(number)


def _host(number: int) -> Callable[[Across], None]:
    return lambda run: run.hosts.kill(number)


# What happens, seconds until the living ones have left, ranks that cannot leave, what is said where
FAULTS: dict[str, tuple[Callable[[Across], None], float, tuple[int, ...], dict[int, str]]] = {
    "rank 3 killed": (_kill(3), 5, (), {1: "host w2: rank 3 (pid "}),
    "rank 2, which speaks, killed": (_kill(2), 5, (), {1: "host w2: rank 2 (pid "}),
    "rank 1 killed": (_kill(1), 5, (), {1: "rank 1 (pid "}),
    "rank 0 killed": (_kill(0), 15, (), {1: "rank 0 (pid ", 2: "rank 0 on host w1 has gone"}),
    "host 3 killed": (_host(3), 15, (4, 5), {1: "host w3 (ranks 4-5) has gone"}),
    "host 1 killed": (_host(1), 20, (0, 1), {2: "rank 0 on host w1 has gone"}),
    "host 2 cut off": (
        _cut(2), 20, (),
        {1: "host w2 (ranks 2-3) does not answer for", 2: "rank 0 on host w1 does not answer"},
    ),
    "rank 5 stopped": (_stop(5), 20, (5,), {1: "rank 5 on host w3 (pid "}),
    "rank 4, which speaks, stopped": (_stop(4), 20, (4,), {1: "rank 4 on host w3 (pid "}),
    "rank 0 stopped": (_stop(0), 25, (0,), {1: "rank 0 on host w1 (pid "}),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_faults_on_three_hosts_are_named_and_everybody_leaves(
    three_hosts, shared_folder, tmp_path, what
):
    act, limit, stuck, said = FAULTS[what]
    words = words_for(shared_folder)
    with across(three_hosts, tmp_path / "run", *words, ranks=2) as run:
        run.wait_for_step(4)
        # Until everybody has been heard once.
        time.sleep(3)
        act(run)
        try:
            seconds = run.wait_for_ranks_to_leave(limit + 30, stuck)
        finally:
            for number in (1, 2, 3):
                three_hosts.mend(number)
            for rank in stuck:
                if three_hosts.processes(run.host_of(rank)):
                    run.send(rank, signal.SIGKILL)
        # What was said behind a cut link comes late.
        end = time.monotonic() + 15
        while time.monotonic() < end and not all(map(run.own_words, said)):
            time.sleep(0.2)
        found = {number: run.own_words(number) for number in said}
    for number in (1, 3):
        if f"host {number} killed" == what:
            three_hosts.boot(number)
    print(f"{what}: {seconds:.1f} s")
    for number, expected in said.items():
        assert len(found[number]) == 1, found
        assert expected in found[number][0], found
    if "stopped" in what:
        assert "SIGSTOP" in found[1][0]
    assert seconds < limit


def test_an_error_of_one_rank_ends_all_hosts_with_its_code(three_hosts, shared_folder, tmp_path):
    disturbed = plant({"rank": 2, "from": 4, "to": 4, "phase": "data", "raises": True})
    with across(three_hosts, tmp_path / "run", *words_for(shared_folder), **disturbed) as run:
        run.wait_for_step(3)
        run.wait_for_ranks_to_leave(30)
        codes = run.codes()
        said = run.own_words()
    assert codes == {1: 3, 2: 3, 3: 3}, run.said()
    assert len(said) == 1
    assert "rank 2: planted: row 7 is broken" in said[0]


def test_a_signal_to_one_rank_stops_all_hosts_with_75(three_hosts, shared_folder, tmp_path):
    with across(three_hosts, tmp_path / "run", *words_for(shared_folder)) as run:
        run.wait_for_step(3)
        run.send(2, signal.SIGUSR1)
        codes = run.codes()
        (said,) = run.own_words()
    assert codes == {1: 75, 2: 75, 3: 75}
    assert "stopped by SIGUSR1 at step" in said

"""A rank that is slow for many steps is named once; chance and trifles are not."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bigft.distributed import waits
from bigft.monitor.meters import PhaseClock
from bigft.trainer.rendezvous import Rendezvous
from bigft.trainer.state import State
from bigft.trainer.stragglers import Stragglers

CPU = torch.device("cpu")


class Kept:
    def __init__(self) -> None:
        self.events: list[tuple[int, str, dict[str, Any]]] = []
        self.said: list[str] = []

    def write(self, step: int, event: str, **details: Any) -> None:
        self.events.append((step, event, details))


def judge(rows: Any, *, seconds: float = 1.0, steps: int = 50, fraction: float = 0.2) -> Kept:
    """Play rows `(steps, ranks, 3)`."""
    kept = Kept()
    rendezvous: Any = SimpleNamespace(own=(0.0, 0.0, 0.0), own_of_all=torch.empty(0, 0))
    hook = Stragglers(
        rendezvous,
        [f"w{rank // 2 + 1}" for rank in range(np.shape(rows)[1])],
        fraction=fraction,
        steps=steps,
        is_rank_zero=True,
        tell=kept.said.append,
        events=kept,
    )
    clock = PhaseClock(CPU)
    for step, row in enumerate(rows, 1):
        rendezvous.own_of_all = torch.tensor(row, dtype=torch.float32)
        hook.stepped(State(step=step), SimpleNamespace(clock=clock, seconds=seconds))
    return kept


def play(steps: int, ranks: int, slow: dict[int, float], noise: float = 0.0) -> Any:
    random = np.random.default_rng(7)
    rows = np.tile([0.05, 0.6, 0.2], (steps, ranks, 1))
    rows *= 1 + noise * random.standard_normal((steps, ranks, 1)).clip(-3, 3)
    for rank, times in slow.items():
        rows[:, rank, 1] *= times
    return rows


def test_a_rank_is_named_after_so_many_steps_with_its_host_and_its_part():
    kept = judge(play(49, 4, {3: 1.5}))
    assert kept.said == []
    kept = judge(play(200, 4, {3: 1.5}))
    ((step, event, details),) = kept.events
    assert (step, event, details["rank"], details["host"]) == (50, "straggler", 3, "w2")
    assert details["part"] == "forward and backward"
    assert details["seconds"] == pytest.approx(1.15)
    assert details["median_seconds"] == pytest.approx(0.85)
    (said,) = kept.said
    assert said == (
        "warning: rank 3 on host w2 is slow: its own work took 1.1s a step over the last 50 steps,"
        " 35% more than the median of all ranks (850 ms); most of that in forward and backward"
        " (900 ms, median 600 ms). The other ranks wait for it"
    )


@pytest.mark.parametrize("ranks", [2, 3, 64])
def test_noise_does_not_hide_it_and_names_nobody(ranks):
    assert judge(play(300, ranks, {}, noise=0.1)).events == []
    assert judge(play(300, ranks, {1: 1.1}, noise=0.05)).events == []
    (event,) = judge(play(300, ranks, {1: 1.6}, noise=0.08)).events
    assert event[1:][1]["rank"] == 1


def test_a_step_of_ten_times_the_time_now_and_then_names_nobody():
    rows = play(400, 4, {})
    rows[::7, 2] *= 10
    assert judge(rows).events == []


def test_who_keeps_up_again_is_said_once():
    rows = np.concatenate([play(80, 4, {0: 1.5}), play(100, 4, {}), play(80, 4, {0: 1.5})])
    kept = judge(rows)
    found = [(step, event) for step, event, _ in kept.events]
    assert found == [(50, "straggler"), (106, "straggler_over"), (225, "straggler")]
    assert kept.said[1] == "rank 0 on host w1 keeps up again at step 106"


def test_a_trifle_of_the_step_delays_nobody():
    """As on an accelerator, where only the data are measured: 2 ms instead of 1 of a second."""
    rows = np.zeros((100, 4, 3))
    rows[:, :, 0] = 0.001
    rows[:, 2, 0] = 0.002
    assert judge(rows).events == []
    rows[:, 2, 0] = 0.2
    (event,) = judge(rows).events
    assert event[2]["part"] == "data"


def test_waiting_for_others_is_no_work(monkeypatch):
    clock = PhaseClock(CPU)
    ticks = iter([0.0, 10.0])
    monkeypatch.setattr("bigft.monitor.meters.time.perf_counter", lambda: next(ticks))
    with clock.phase("forward"):
        waits.WAITS.seconds += 7.0
    assert clock.own["forward"] == pytest.approx(3.0)
    assert clock.read()["forward"] == pytest.approx(10.0)
    # It is never read away.
    assert clock.own["forward"] == pytest.approx(3.0)


def test_waits_of_all_kinds_of_collectives_add_up():
    work = torch.distributed.Work
    before = work.wait
    try:
        waits.measure_waits()
        assert work.wait is not before or getattr(before, "adds_up", False)
        measured = work.wait
        waits.measure_waits()
        assert work.wait is measured
        start = waits.WAITS.seconds
        torch.distributed.all_reduce(torch.ones(2))
        first = waits.WAITS.seconds
        torch.distributed.all_reduce(torch.ones(2), async_op=True).wait()
        second = waits.WAITS.seconds
        torch.distributed.barrier()
        assert start < first < second < waits.WAITS.seconds
    finally:
        work.wait = before


def test_the_numbers_travel_with_the_losses():
    rendezvous = Rendezvous(SimpleNamespace(name=None), CPU)
    rendezvous.own = (0.25, 0.5, 0.125)
    rendezvous.begin([torch.tensor(3.0), torch.tensor(4.0)])
    rendezvous.settle()
    assert rendezvous.own_of_all.tolist() == [[0.25, 0.5, 0.125]]
    assert rendezvous.losses.tolist() == [[3.0, 4.0]]
    assert rendezvous.poll() is False

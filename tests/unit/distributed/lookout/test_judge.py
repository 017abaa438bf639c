"""What follows from where ranks stand, by a clock of the test."""

import pytest
from lookout_site import standing

from bigft.distributed.lookout.judge import Judge, find_guilty
from bigft.distributed.lookout.limits import Limits
from bigft.distributed.lookout.standing import describe_all, name_ranks, survey

LIMITS = Limits()
HOSTS = {0: "w1", 1: "w1", 2: "w2", 3: "w2"}


class Run:
    """Four ranks on two hosts that report once a second."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.judge = Judge(limits, HOSTS, 0.0)
        self.now = 0.0

    def pass_seconds(self, seconds: float, **changes):
        """The same report again and again; return when something was wrong first, and what."""
        for _ in range(int(seconds)):
            self.now += 1.0
            self.judge.hear([standing(rank, **changes) for rank in HOSTS], self.now)
            text = self.judge.judge(self.now)
            if text is not None:
                return text
        return None

    def train(self, steps: int, step_seconds: float, jitter=lambda step: 1.0):
        assert self.find_alarms(steps, step_seconds, jitter) == []
        return self

    def find_alarms(self, steps: int, step_seconds: float, jitter) -> list[str]:
        """Train; return what was said to be wrong, which ends it."""
        for step in range(1, steps + 1):
            seconds = step_seconds * jitter(step)
            text = self.pass_seconds(max(1, seconds), step=step, mark=f"{step}")
            if text is not None:
                return [text]
        return []


def test_a_start_has_its_own_limit():
    run = Run()
    assert run.pass_seconds(1700, step=None, phase="loading the model") is None
    assert run.pass_seconds(1700, step=None, phase="setting up the engine") is None
    text = run.pass_seconds(200, step=None, phase="setting up the engine")
    assert "nothing has moved for 30m" in text
    assert "--watch.startup_seconds" in text
    assert "ranks 0-3 while setting up the engine" in text


def test_what_goes_on_inside_a_phase_counts():
    run = Run()
    for moves in range(20):
        assert run.pass_seconds(600, step=None, phase="preparing the data", mark=str(moves)) is None


def test_the_first_steps_belong_to_the_start():
    run = Run()
    for step in (1, 2, 3):
        assert run.pass_seconds(300, step=step) is None


@pytest.mark.parametrize(
    ("seconds", "patience"),
    [([], 120), ([2], 55), ([40], 200), ([40, 2], 200), ([40, 2, 2, 2], 55)],
)
def test_a_silent_process_has_less_time_once_a_step_is_done(seconds, patience):
    run = Run()
    run.pass_seconds(5, step=None, phase="setting up the engine")
    run.pass_seconds(1, step=0)
    for step, length in enumerate(seconds, 1):
        run.pass_seconds(length - 1, step=step - 1)
        run.pass_seconds(1, step=step)
    assert run.judge.patience == patience


@pytest.mark.parametrize(
    ("step_seconds", "limit"), [(1.0, 55), (10.0, 55), (30.0, 150), (400.0, 2000)]
)
def test_a_hang_is_found_within_sixty_seconds_or_five_steps(step_seconds, limit):
    run = Run().train(8, step_seconds)
    before = run.now
    text = run.pass_seconds(3000, step=8, mark="8")
    # The last step has already taken as long as it usually does.
    assert limit - step_seconds - 2 <= run.now - before <= limit + 1
    assert "--watch.steady_seconds, or 5 steps of" in text


def test_steps_that_were_done_between_two_looks_count():
    """A step of 50 ms: whoever looks once a second first sees the eighth one."""
    run = Run()
    assert run.pass_seconds(9, step=None, phase="setting up the engine") is None
    text = run.pass_seconds(3000, step=8, first=1, phase="data")
    assert 9 + 55 <= run.now <= 9 + 57
    assert "--watch.steady_seconds, or 5 steps of 1.4s" in text
    # A slow start that ends in the first step: what counts is the time of most of them.
    run = Run()
    assert run.pass_seconds(40, step=None, phase="setting up the engine") is None
    run.pass_seconds(1, step=2, first=1)
    text = run.pass_seconds(3000, step=8, first=1, phase="data")
    assert 41 + 55 <= run.now <= 41 + 57
    assert "--watch.steady_seconds, or 5 steps of 0.2s" in text
    # After a resume the first steps are the first of this start.
    run = Run()
    assert run.pass_seconds(1700, step=502, first=501) is None


def test_ten_times_jitter_is_no_alarm():
    assert Run().find_alarms(200, 3.0, lambda step: 10.0 if step % 7 == 0 else 1.0) == []
    assert Run().find_alarms(100, 20.0, lambda step: 5.0 if step % 10 == 9 else 1.0) == []
    # More than five steps of 20 seconds is one: the same training can raise it.
    assert len(Run().find_alarms(100, 20.0, lambda step: 6.0 if step % 10 == 9 else 1.0)) == 1


@pytest.mark.parametrize("phase", ["saving", "evaluating"])
def test_saves_and_evaluations_have_their_own_limit(phase):
    run = Run().train(10, 1.0)
    assert run.pass_seconds(1700, step=10, phase=phase) is None
    run.train(3, 1.0)
    text = run.pass_seconds(1900, step=10, phase=phase)
    assert "--watch.slow_seconds" in text


@pytest.mark.parametrize("name", ["startup", "steady", "slow"])
def test_zero_switches_off(name):
    limits = Limits(**{"startup": 50, "steady": 50, "slow": 50, name: 0})
    run = Run(limits)
    where = {
        "startup": {"step": None},
        "steady": {"step": 9, "phase": "forward"},
        "slow": {"step": 9, "phase": "saving"},
    }
    for kind, place in where.items():
        run = Run(limits)
        if kind != "startup":
            run.train(9, 1.0)
        assert (run.pass_seconds(400, **place) is None) is (kind == name)


def test_a_stopped_rank_is_named_also_during_the_start():
    run = Run()
    for second in range(1, 100):
        rows = [standing(r, None, "loading", mark=str(second), state="S") for r in HOSTS]
        rows[2] = standing(2, None, "loading", mark="0", state="T" if second > 10 else "S")
        run.judge.hear(rows, float(second))
        if (text := run.judge.judge(float(second))) is not None:
            break
    assert second == 66
    assert text == (
        "rank 2 on host w2 (pid 102, 5.00 MiB) stands while loading, stopped by a signal (SIGSTOP)"
        " for 55.0s now"
    )


def test_one_rank_that_moves_is_enough():
    run = Run().train(10, 1.0)
    for second in range(1000):
        rows = [standing(r, 10, mark=str(second) if r == 3 else "10") for r in HOSTS]
        run.judge.hear(rows, run.now + second)
        assert run.judge.judge(run.now + second) is None


def test_a_pause_is_forgiven():
    run = Run().train(10, 1.0)
    run.now += 500
    run.judge.forgive(500)
    assert run.judge.judge(run.now) is None
    assert run.pass_seconds(50, step=10) is None


def test_a_host_that_has_left_is_not_waited_for():
    run = Run().train(10, 1.0)
    run.judge.forget(HOSTS)
    assert run.judge.judge(run.now + 9999) is None


def test_ranks_whose_notes_cannot_be_read_are_not_said_to_stand_still():
    """Python built for an old system cannot share notes, and the run goes on without them."""
    judge = Judge(LIMITS, HOSTS, 0.0)
    for second in range(0, 9999, 100):
        judge.hear(survey(dict.fromkeys(HOSTS, 1), lambda rank: {}), float(second))
        assert judge.judge(float(second)) is None


def names(*standings):
    return [one.rank for one in find_guilty(standings)]


def test_who_is_the_cause():
    waiting = {"where": "all_gather (c10d.py:1)", "waits": True}
    busy = {"where": "fetch (mine.py:7)"}
    assert names(standing(0, **waiting), standing(1, **waiting)) == []
    assert names(standing(0, 5, **waiting), standing(1, 5, **busy)) == [1]
    assert names(standing(0, 5, **waiting), standing(1, 4, **waiting)) == [1]
    assert names(standing(0, 5, "optimizer", **waiting), standing(1, 5, "data", **waiting)) == [1]
    assert names(standing(0, 5, "saving", **busy), standing(1, 5, "forward", **busy)) == [1]
    assert names(standing(0, None, "loading"), standing(1, 1)) == [0]
    # A stopped one is the cause wherever it stands.
    assert names(standing(0, 4, **busy), standing(1, 5, state="T")) == [1]


def test_the_cause_is_named_with_where_it_is():
    run = Run().train(10, 1.0)
    rows = [standing(r, 10, "forward", where="wait (p.py:3)", waits=True) for r in HOSTS]
    rows[3] = standing(3, 10, "data", where="sleep_long (d.py:4)")
    for second in range(1, 70):
        run.judge.hear(rows, run.now + second)
    text = run.judge.judge(run.now + 69)
    assert (
        "rank 3 on host w2 (pid 103, 5.00 MiB) stands in step 10 of 9 (data), in sleep_long"
        " (d.py:4); the others wait: ranks 0-2 in step 10 of 9 (forward), in wait (p.py:3)"
    ) in text


def test_many_guilty_ranks_are_not_all_listed():
    hosts = dict.fromkeys(range(1000), "w")
    judge = Judge(LIMITS, hosts, 0.0)
    for second in (0.0, 2000.0):
        judge.hear([standing(r, 3 if r < 600 else 4, mark="m") for r in hosts], second)
    text = judge.judge(2000.0)
    assert "and 592 more" in text
    assert "ranks 600-999 in step 4" in text
    assert len(text) < 1500


def test_words_for_ranks():
    assert name_ranks([3]) == "rank 3"
    assert name_ranks([2, 0, 1, 5, 7, 8]) == "ranks 0-2, 5, 7-8"
    assert describe_all([standing(0), standing(2), standing(1, 2)]) == (
        "ranks 0, 2 in step 1 of 9 (forward); rank 1 in step 2 of 9 (forward)"
    )

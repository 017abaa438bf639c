"""A process is killed at every call by which a save changes the disk; nothing may be lost."""

import pytest
from situations import SITUATIONS
from sweep import Sweep, list_kills
from writers import Trial

_KILLED = -9


def _report(trials, verdicts):
    """Every trial that violates something, with what is needed to repeat it."""
    return [
        f"{trial}: {verdict['violations']}"
        for trial, verdict in zip(trials, verdicts, strict=True)
        if verdict["violations"]
    ]


def test_sweep_is_as_large_as_it_claims(calls_of):
    kills = {name: len(list_kills(calls, name)) for name, calls in calls_of.items()}
    print(f"{sum(kills.values()):,} kills: {kills}")
    assert sum(kills.values()) >= 1_500


@pytest.mark.parametrize("situation", SITUATIONS)
def test_nothing_is_lost_by_a_kill(calls_of, situation):
    trials = list_kills(calls_of[situation], situation)
    verdicts = Sweep().run(trials)
    assert not _report(trials, verdicts)
    for trial, verdict in zip(trials, verdicts, strict=True):
        assert verdict["signals"][trial.victim] == _KILLED, trial
        if trial.kind == "kill":
            others = [s for rank, s in enumerate(verdict["signals"]) if rank != trial.victim]
            assert others == [0, 0, 0], trial


def test_restart_is_not_harmed_by_writers_that_still_run(calls_of):
    """Rank 0 dies and the run starts again while the other three write on for their dead run."""
    log = calls_of["normal"][0]
    trials = [
        Trial("normal", 0, "kill", number, timeout_seconds=0.4, is_slow=True)
        for number in range(1, len(log) + 1, 2)
    ]
    verdicts = Sweep().run(trials)
    assert not _report(trials, verdicts)
    assert all(verdict["signals"][0] == _KILLED for verdict in verdicts)

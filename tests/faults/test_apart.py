"""Two storages: a kill at any call of any writer, an error of any call, and nothing is lost."""

from dataclasses import replace

import pytest
from situations import APART
from sweep import Sweep, list_errors, list_kills
from writers import Trial

_STRIDE = 29
"""Of the kills in the default tier; a prime, so that all kinds come in."""

_TIMEOUT_SECONDS = 0.15
"""The ranks wait several times for each other."""


def _find_violations(trials):
    """What the trials did that must not be; that there are trials at all is checked here."""
    assert trials
    verdicts = Sweep().run(trials)
    wrong = [
        f"{trial}: {verdict['violations']}"
        for trial, verdict in zip(trials, verdicts, strict=True)
        if verdict["violations"]
    ]
    print(f"{len(trials)} trials, {len(wrong)} violations")
    return wrong


def _list_kills(calls, name):
    return [
        replace(trial, timeout_seconds=_TIMEOUT_SECONDS) for trial in list_kills(calls[name], name)
    ]


@pytest.fixture(scope="module")
def calls():
    """The calls of a save without a fault: per situation and rank."""
    verdicts = Sweep().run([Trial(name) for name in APART])
    for name, verdict in zip(APART, verdicts, strict=True):
        assert not verdict["violations"], (name, verdict["violations"])
        assert all("path" in outcome for outcome in verdict["outcomes"]), (name, verdict)
    return {
        name: [outcome["calls"] for outcome in verdict["outcomes"]]
        for name, verdict in zip(APART, verdicts, strict=True)
    }


def test_nothing_is_lost_by_a_kill_on_a_sample(calls):
    trials = [trial for name in APART for trial in _list_kills(calls, name)]
    assert len(trials) >= 2_000
    assert _find_violations(trials[::_STRIDE]) == []


@pytest.mark.nightly
@pytest.mark.parametrize("situation", APART)
def test_nothing_is_lost_by_a_kill(calls, situation):
    assert _find_violations(_list_kills(calls, situation)) == []


@pytest.mark.nightly
@pytest.mark.parametrize("situation", APART)
def test_an_error_fails_the_save_alike_everywhere_and_the_next_one_works(calls, situation):
    assert _find_violations(list_errors(calls[situation], situation, 3)) == []

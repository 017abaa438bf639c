"""A call of a save fails, as on a full, failing or read-only disk: one error, nothing lost."""

import pytest
from situations import SITUATIONS
from sweep import Sweep, list_errors

# Of some 3,800 (call, rank, situation, error); a prime, so that all kinds come in.
_STRIDE = 5


def test_sweep_is_as_large_as_it_claims(calls_of):
    errors = {name: len(list_errors(calls, name, _STRIDE)) for name, calls in calls_of.items()}
    print(f"{sum(errors.values()):,} errors: {errors}")
    assert sum(errors.values()) >= 600


@pytest.mark.parametrize("situation", SITUATIONS)
def test_an_error_fails_the_save_alike_everywhere_and_the_next_one_works(calls_of, situation):
    """Where the error costs nothing but a warning, the save succeeds everywhere."""
    trials = list_errors(calls_of[situation], situation, _STRIDE)
    verdicts = Sweep().run(trials)
    assert not [
        f"{trial}: {verdict['violations']}"
        for trial, verdict in zip(trials, verdicts, strict=True)
        if verdict["violations"]
    ]
    for trial, verdict in zip(trials, verdicts, strict=True):
        assert verdict["outcomes"][trial.victim]["is_fired"], trial

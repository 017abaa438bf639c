"""The parts of the fault tests import each other by plain names, as their own processes do."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope="session")
def calls_of() -> dict[str, Sequence[Sequence[Sequence[str]]]]:
    """The calls of a save without a fault: per situation and rank."""
    from situations import SITUATIONS
    from sweep import Sweep
    from writers import Trial

    verdicts = Sweep().run([Trial(name) for name in SITUATIONS])
    for name, verdict in zip(SITUATIONS, verdicts, strict=True):
        assert not verdict["violations"], (name, verdict["violations"])
        assert all("path" in outcome for outcome in verdict["outcomes"]), (name, verdict)
    return {
        name: [outcome["calls"] for outcome in verdict["outcomes"]]
        for name, verdict in zip(SITUATIONS, verdicts, strict=True)
    }

"""What the parent makes of events, and when it loses patience."""

import pytest

from bigft.errors import LaunchError
from bigft.selftest.progress import BUILD_SECONDS, Progress
from bigft.selftest.report import AGREES, FAILED

ROWS = ["zero1/adamw/fp32/x1", "zero2/adamw/fp32/x1"]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def said():
    return []


@pytest.fixture
def progress(clock, said):
    return Progress(ROWS, 60.0, said.append, clock)


def test_a_hang_is_named_by_what_did_not_end(progress, clock):
    clock.now = 59.0
    progress.check()
    clock.now = 61.0
    with pytest.raises(LaunchError, match="the start of the ranks has not ended after"):
        progress.check()
    progress.take({"event": "ready"})
    progress.take({"event": "begins", "row": ROWS[0]})
    clock.now = 120.0
    progress.check()
    clock.now = 122.0
    with pytest.raises(LaunchError, match=f"the run {ROWS[0]} has not ended"):
        progress.check()


def test_building_operators_is_said_and_has_its_own_time(progress, clock, said):
    progress.take({"event": "building", "operators": ["AsyncIO", "ShareMemComm"]})
    assert said == ["building AsyncIO, ShareMemComm: some minutes the first time, then from the"
                    " cache"]  # fmt: skip
    clock.now = 600.0
    progress.check()
    clock.now = BUILD_SECONDS + 1
    with pytest.raises(LaunchError, match="the build of AsyncIO, ShareMemComm"):
        progress.check()


def test_rows_are_counted_and_what_differs_is_said(progress, said):
    progress.take({"event": "ready"})
    progress.take({"event": "row", "row": ROWS[0], "verdict": AGREES, "problems": [],
                   "difference": None, "seconds": 1.0})  # fmt: skip
    progress.take({"event": "row", "row": ROWS[1], "verdict": "differs", "problems": ["losses"],
                   "difference": None, "seconds": 1.0})  # fmt: skip
    assert said == [f"1 of 2: {ROWS[0]} agrees", f"2 of 2: {ROWS[1]} differs", "  losses"]
    progress.end(0, "")
    assert [one.verdict for one in progress.outcomes] == [AGREES, "differs"]


def test_the_run_that_ended_the_ranks_has_failed(progress):
    progress.take({"event": "ready"})
    progress.take({"event": "row", "row": ROWS[0], "verdict": AGREES, "seconds": 1.0})
    progress.take({"event": "begins", "row": ROWS[1]})
    progress.end(7, "bigft: no")
    assert progress.outcomes[1].row == ROWS[1]
    assert progress.outcomes[1].verdict == FAILED
    assert progress.outcomes[1].problems == ["ended with exit code 7: bigft: no"]


def test_ranks_that_never_started_are_an_error(progress):
    with pytest.raises(LaunchError, match="could not start .exit code 6.: bigft: no compiler"):
        progress.end(6, "bigft: no compiler")

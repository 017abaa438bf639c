"""What the kernel saw: nothing gets past the counted calls, and the order survives a power cut."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from trace import OPTIONS, explain_order, read_events

import pytest
from situations import SITUATIONS
from sweep import Sweep
from writers import Trial

_SAVES = [name for _ in range(3) for name in SITUATIONS]


def _is_permitted() -> bool:
    if shutil.which("strace") is None:
        return False
    done = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return done.returncode == 0


pytestmark = pytest.mark.skipif(
    not _is_permitted(), reason="strace is not installed or not permitted (ptrace)"
)


def _run_traced(folder: Path, trials):
    """Run saves under strace; per save the verdict, and the events of each writer."""
    verdicts = Sweep(1, prefix=("strace", *OPTIONS, "-o", str(folder / "log"))).run(trials)
    found = []
    for verdict in verdicts:
        assert not verdict["violations"], verdict
        trial = Path(verdict["checkpoints"]).parents[1]
        found.append([read_events(folder / f"log.{pid}", trial) for pid in verdict["pids"]])
    return verdicts, found


def _explain(verdict, writers) -> list[str]:
    checkpoints = Path(verdict["checkpoints"])
    events = sorted((e for events in writers for e in events), key=lambda event: event.start)
    return explain_order(events, checkpoints, checkpoints.parent.with_name("board"))


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    return _run_traced(tmp_path_factory.mktemp("traced"), [Trial(name) for name in _SAVES])


def test_no_system_call_gets_past_the_counted_ones(traced):
    total = 0
    for name, verdict, writers in zip(_SAVES, *traced, strict=True):
        has_exchange = SITUATIONS[name].has_exchange
        board = str(Path(verdict["checkpoints"]).parent.with_name("board"))
        for outcome, events in zip(verdict["outcomes"], writers, strict=True):
            seen = [(e.name, e.path) for e in events if not e.path.startswith(board)]
            counted = [
                ("rename" if name == "replace" else name, path)
                for name, path in outcome["calls"]
                # A refused exchange is none: that situation only acts as if it had been tried.
                if name not in ("close", "look", "found", "" if has_exchange else "exchange")
            ]
            assert seen == counted
            total += len(seen)
    print(f"{total:,} system calls in {len(_SAVES)} saves")
    assert total > 1_000


def test_everything_is_on_disk_before_it_is_named_and_told(traced):
    problems = [_explain(*pair) for pair in zip(*traced, strict=True)]
    assert problems == [[]] * len(_SAVES)


def test_order_without_sync_is_noticed(tmp_path):
    """The check of the order finds a protocol that leaves the folders to chance."""
    trial = Trial("normal", broken="puts no names on disk")
    verdicts, found = _run_traced(tmp_path, [trial])
    text = "; ".join(_explain(verdicts[0], found[0]))
    assert "the names in state are not on disk" in text
    assert "the name of the checkpoint is not put on disk" in text


def test_nothing_is_lost_by_kills_that_the_kernel_counts():
    """The same as the sweep, on a sample, with the kernel and not Python doing the counting."""
    rank_zero = [
        Trial(situation, 0, "strace", number, timeout_seconds=4, system_call=call)
        for situation, call, numbers in (
            ("normal", "fsync", range(1, 11)),
            ("same step again", "renameat2", (1,)),
            ("same step again", "write", (2, 5, 9)),
            ("rotation", "rename", (2, 3, 4, 5)),
            ("rotation", "unlinkat", (1, 5, 12)),
            ("debris", "rename", (1, 2)),
            ("first save", "mkdir", (2, 3, 4)),
        )
        for number in numbers
    ]
    others = [
        replace(Trial("normal"), victim=victim, kind="strace", number=number, system_call=call)
        for victim, call, number in ((1, "fsync", 1), (2, "fsync", 3), (3, "write", 2))
    ]
    trials = rank_zero + [replace(trial, timeout_seconds=4) for trial in others]
    verdicts = Sweep(12).run(trials)
    assert not [v["violations"] for v in verdicts if v["violations"]]
    killed = [v["signals"][t.victim] == -9 for t, v in zip(trials, verdicts, strict=True)]
    print(f"{sum(killed)} of {len(trials)} killed")
    assert all(killed), [t for t, is_killed in zip(trials, killed, strict=True) if not is_killed]

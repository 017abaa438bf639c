"""The checks find what is wrong with protocols that are wrong, each in its own way."""

from dataclasses import replace

import pytest
from broken import BROKEN
from sweep import Sweep, list_errors
from writers import Trial


def _at(situation, victim, *words):
    """Kills of a writer at its calls of these names, or at all of them."""

    def make(calls_of, broken):
        dry = Trial(situation, broken=broken)
        log = Sweep(1).run([dry])[0]["outcomes"][victim]["calls"]
        return [dry] + [
            replace(dry, victim=victim, kind="kill", number=number, timeout_seconds=0.4)
            for number, (name, _) in enumerate(log, 1)
            if name in words or not words
        ]

    return make


def _errors(calls_of, broken):
    """Errors of fsync at every rank."""
    trials = list_errors(calls_of["normal"], "normal")
    fsyncs = [t for t in trials if calls_of["normal"][t.victim][t.number - 1][0] == "fsync"]
    return [replace(trial, broken=broken) for trial in fsyncs]


# What is broken: where it shows, and the words of the check that notices.
_CASES = {
    "publishes without waiting for the others": (_at("normal", 2), "N2"),
    "deletes before it renames": (_at("same step again", 0, "unlink", "rename"), "N1|N2"),
    "points latest first": (_at("normal", 0, "fsync", "rename"), "latest says"),
    "rotates before it commits": (_at("normal", 0, "unlink", "rename"), "N1"),
    "announces before the rename": (_at("normal", 0, "rename"), "N1"),
    "writes under the final name": (_at("first save", 2), "N2"),
    "deletes under the final name": (_at("rotation", 0, "unlink"), "N2"),
    "rotates what was resumed from": (_at("rotation", 0, "rename"), "N7"),
    "leaves debris": (_at("debris", 0, "rename"), "N7"),
    "forgets what it renamed aside": (_at("same step, no exchange", 0, "rename"), "N1"),
    "resumes from the highest name": (_at("rotation to 3", 0, "mkdir"), "N1"),
    "decides before all are prepared": (_at("apart: normal", 2, "write"), "N3"),
    "announces before all have renamed": (_at("apart: normal", 2, "rename"), "N1"),
    "settles nothing": (_at("apart: half named", 0, "mkdir"), "N1"),
    "rotates what was resumed from, apart": (_at("apart: rotation", 0, "rename"), "N7"),
    "ignores errors of fsync": (_errors, "went unnoticed"),
    "ignores errors of sync": (_errors, "went unnoticed"),
}


# A kill leaves the page cache alone: only the order of calls shows it (`test_strace.py`).
_SEEN_BY_STRACE = {"puts no names on disk"}


def test_every_broken_protocol_has_a_case():
    assert {*_CASES, *_SEEN_BY_STRACE} == set(BROKEN)


@pytest.mark.parametrize("broken", _CASES)
def test_broken_protocol_is_noticed(calls_of, broken):
    make, words = _CASES[broken]
    verdicts = Sweep().run(make(calls_of, broken))
    noticed = [text for verdict in verdicts for text in verdict["violations"]]
    print(f"{len(noticed)} violations in {len(verdicts)} trials: {sorted(set(noticed))[:5]}")
    assert any(word in text for text in noticed for word in words.split("|")), noticed

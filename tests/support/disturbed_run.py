"""`bigft train` with something wrong on one rank, as `DISTURB` says: a list of these, as JSON.

`{"rank": 1, "from": 5, "to": 6, "phase": "forward", "seconds": 3600}` sleeps in a phase of these
steps; with `"up_to"` instead of `"seconds"` for a random time, the same on every rank. Without
`rank`: on all.
`{"rank": 1, "from": 5, "to": 5, "phase": "data", "raises": true}` raises an error of data.
"""

import contextlib
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

RULES: list[dict[str, Any]] = json.loads(os.environ.get("DISTURB", "[]"))
RANK = int(os.environ.get("RANK", "0"))


def main() -> None:
    from bigft.distributed.place import HERE
    from bigft.monitor.meters import PhaseClock

    phase = PhaseClock.phase

    @contextlib.contextmanager
    def disturbed(clock: Any, name: str) -> Iterator[None]:
        with phase(clock, name):
            yield
            for rule in RULES:
                disturb(rule, name, HERE.facts.get("step", 0))

    PhaseClock.phase = disturbed
    note = HERE.note

    def note_disturbed(**facts: Any) -> None:
        note(**facts)
        if facts.get("phase") in ("saving", "evaluating"):
            for rule in RULES:
                disturb(rule, facts["phase"], HERE.facts.get("step", 0))

    HERE.note = note_disturbed
    from bigft.cli import main as bigft

    bigft(["train", *sys.argv[1:]])


def disturb(rule: dict[str, Any], name: str, step: int) -> None:
    """Do what a rule says, if it is its time."""
    is_here = rule.get("rank") in (None, RANK) and rule["phase"] == name
    if not is_here or not rule["from"] <= step <= rule["to"]:
        return
    if rule.get("raises"):
        from bigft.errors import DataError

        raise DataError("planted: row 7 is broken")
    seconds = rule.get("seconds", 0.0)
    if "up_to" in rule:
        seconds = random.Random(step).uniform(0, rule["up_to"])
    sleep_long(seconds)


def sleep_long(seconds: float) -> None:
    """Named in the words about this rank."""
    time.sleep(seconds)


if __name__ == "__main__":
    main()

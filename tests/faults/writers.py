"""One writer of a trial: a process that saves with a fault in it and says how it went."""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from boards import DirectoryBoard
from calls import Calls, Fault, QuietBoard
from situations import (
    EVERY,
    WORLD_SIZE,
    describe_storages,
    find_checkpoints,
    find_storage,
    make_writer,
)

from bigft.checkpoint.commit import write_checkpoint
from bigft.errors import BigftError


@dataclass(frozen=True)
class Trial:
    """One save with at most one fault."""

    situation: str
    victim: int = 0
    kind: str = ""
    """A kind of `Fault`, `strace` for a real injection, or nothing."""
    number: int = 0
    errno: int = 0
    timeout_seconds: float = 30.0
    broken: str = ""
    """A change of the protocol that the checks must notice (`broken.py`)."""
    answer: str = "saved"
    """How a save with an error has to end: `saved`, `failed`, `either` of them, or `unconfirmed`:
    reported as failed, and the new checkpoint is there all the same."""
    has_next: bool = False
    """Save once more in the same processes, without a fault."""
    is_slow: bool = False
    """The others write slowly, and the restart does not wait for them."""
    system_call: str = ""
    """For `strace`: which one is counted."""

    @property
    def tag(self) -> str:
        """The mark in every file of the save."""
        return "new"

    @property
    def next_step(self) -> int:
        """Step of the second save."""
        return EVERY[self.situation].step + 10


def run_writer(trial: Trial, rank: int, run: Path, report: int) -> None:
    """Save, and write one line of JSON per save into the descriptor `report`."""
    fault = None
    if rank == trial.victim and trial.kind not in ("", "strace"):
        fault = Fault(trial.kind, trial.number, trial.errno)
    calls = Calls(fault)
    tell = os.write
    board = QuietBoard(DirectoryBoard(run.with_name("board")), calls)
    if not EVERY[trial.situation].has_exchange:
        from bigft.checkpoint import folder

        folder.exchange = lambda first, second: False
    calls.install()
    steps = [(EVERY[trial.situation].step, trial.tag)]
    if trial.has_next:
        steps.append((trial.next_step, f"{trial.tag}-next"))
    for step, tag in steps:
        before = len(calls.log)
        outcome = _save(trial, rank, run, board, step, tag)
        outcome |= {"is_fired": calls.is_fired, "calls": calls.log[before:]}
        tell(report, (json.dumps(outcome) + "\n").encode())


def _save(trial: Trial, rank: int, run: Path, board: Any, step: int, tag: str) -> dict[str, Any]:
    situation = EVERY[trial.situation]
    checkpoints = find_checkpoints(run, find_storage(rank, situation))
    protected = situation.protected
    pause = 0.01 if trial.is_slow and rank != trial.victim else 0.0
    try:
        path = write_checkpoint(
            checkpoints,
            step=step,
            facts={"tag": tag},
            write=make_writer(tag, rank, step, lambda: time.sleep(pause)),
            rank=rank,
            world_size=WORLD_SIZE,
            board=board,
            timeout_seconds=trial.timeout_seconds,
            keep_last=situation.keep_last,
            protected=checkpoints / f"step_{protected:08d}" if protected else None,
            save_id=f"s{step}-{tag}",
            storages=describe_storages(situation),
        )
    except BigftError as error:
        return {"error": str(error), "kind": type(error).__name__, "is_shared": error.is_shared}
    except Exception as error:  # noqa: BLE001
        return {"error": f"{type(error).__name__}: {error}", "kind": "bug", "is_shared": False}
    return {"path": path.name}


def command(trial: Trial, rank: int, run: Path, report: int) -> list[str]:
    """Return the words that start a writer as a process of its own, which strace will kill."""
    words = [sys.executable, __file__, json.dumps(asdict(trial)), str(rank), str(run), str(report)]
    inject = f"inject={trial.system_call}:signal=KILL:when={trial.number}"
    return [
        "strace",
        "-f",
        "-o",
        "/dev/null",
        "-e",
        f"trace={trial.system_call}",
        "-e",
        inject,
        *words,
    ]


if __name__ == "__main__":
    run_writer(
        Trial(**json.loads(sys.argv[1])), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    )

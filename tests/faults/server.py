"""Runs trials one after the other: forks four writers for each, and checks what they leave.

Started once and fed with lines of JSON, so that a trial costs milliseconds and no imports. It reads
`Trial`s from its standard input and writes a verdict per line to its standard output.
"""

import json
import logging
import os
import select
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import checker_apart
from broken import broken
from checker import (
    Saved,
    check_answers,
    check_disk,
    check_restart,
    check_survivors,
    check_tidy,
)
from situations import EVERY, WORLD_SIZE, Situation, build, clone
from writers import Trial, command, run_writer

# Far beyond any time limit of a trial: reaching it is a hang.
_HANG_SECONDS = 100


class Server:
    """Holds the folders that the trials start from."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._number = 0

    def run(self, trial: Trial) -> dict[str, Any]:
        """Run one trial and say what it violates."""
        situation = EVERY[trial.situation]
        template = self._base / "templates" / situation.name
        if not template.exists():
            build(situation, template)
        self._number += 1
        place = self._base / f"trial-{self._number}"
        clone(template, place / "run")
        try:
            with broken(trial.broken):
                return self._judge(trial, situation, place / "run")
        finally:
            shutil.rmtree(place)

    def _judge(self, trial: Trial, situation: Situation, run: Path) -> dict[str, Any]:
        writers = _start(trial, run)
        checkpoints = run / "checkpoints"
        saved = Saved(situation.tags, situation.keep_last, situation.protected, situation.damaged)
        attempt = (situation.step, trial.tag)
        if trial.is_slow:
            # The restart comes while the others still write.
            _wait(writers, only=trial.victim)
            outcomes: list[list[dict[str, Any]]] = [[] for _ in range(WORLD_SIZE)]
            hung = False
        else:
            outcomes, hung = _collect(writers)
        problems = ["hang"] if hung else []
        first = [lines[0] if lines else None for lines in outcomes]
        is_announced = any("path" in outcome for outcome in first if outcome)
        verdict = {
            "outcomes": first,
            "signals": [writer.status for writer in writers],
            "pids": [writer.pid for writer in writers],
            "checkpoints": str(checkpoints),
        }
        if situation.storages > 1:
            problems += self._judge_apart(
                trial, situation, run, saved, outcomes, is_announced=is_announced
            )
        elif trial.has_next:
            problems += self._judge_error(trial, situation, run, saved, outcomes)
        else:
            found, whole = check_disk(
                checkpoints, situation, saved, attempt, is_announced=is_announced
            )
            problems += found
            problems += check_survivors(first, trial.victim)
            problems += check_restart(checkpoints, saved, whole, attempt)
        if trial.is_slow:
            outcomes, hung = _collect(writers)
            verdict["outcomes"] = [lines[0] if lines else None for lines in outcomes]
            problems += ["hang"] if hung else []
            problems += check_survivors(verdict["outcomes"], trial.victim)
            problems += check_tidy(
                checkpoints, saved, (max(attempt[0], *saved.tags) + 10, "restart")
            )
        return {**verdict, "violations": problems}

    def _judge_apart(
        self,
        trial: Trial,
        situation: Situation,
        run: Path,
        saved: Saved,
        outcomes: list[list[dict[str, Any]]],
        *,
        is_announced: bool,
    ) -> list[str]:
        attempt = (situation.step, trial.tag)
        if not trial.has_next:
            first = [lines[0] if lines else None for lines in outcomes]
            problems, whole = checker_apart.check_disks(
                run, situation, saved, attempt, is_announced=is_announced
            )
            problems += checker_apart.check_survivors(first, trial.victim)
            return problems + checker_apart.check_restart(run, situation, saved, whole, attempt)
        if any(len(lines) != 2 for lines in outcomes):
            return [f"a writer died: {outcomes}"]
        texts = {lines[0].get("error") for lines in outcomes}
        problems = [f"the ranks disagree: {texts}"] if len(texts) > 1 else []
        followed = [lines[1].get("error") for lines in outcomes]
        if any(followed):
            return [*problems, f"the next save failed: {followed}"]
        return problems + checker_apart.check_tidy(
            run, saved, (trial.next_step, f"{trial.tag}-next")
        )

    def _judge_error(
        self,
        trial: Trial,
        situation: Situation,
        run: Path,
        saved: Saved,
        outcomes: list[list[dict[str, Any]]],
    ) -> list[str]:
        """A save with an error, and one without in the same processes."""
        if any(len(lines) != 2 for lines in outcomes):
            return [f"a writer died: {outcomes}"]
        first = [lines[0] for lines in outcomes]
        _, path = first[trial.victim]["calls"][trial.number - 1]
        if "/hf/" in path:
            path = str(run / "checkpoints")  # a library does not say which of its files it was
        words = (f"rank {trial.victim}: ", path, os.strerror(trial.errno))
        problems = check_answers(first, trial.answer, words)
        followed = [lines[1].get("error") for lines in outcomes]
        if any(followed):
            return [*problems, f"the next save failed: {followed}"]
        tags = dict(saved.tags)
        if "error" not in first[0] or trial.answer == "unconfirmed":
            tags.pop(situation.step, None)
            tags[situation.step] = trial.tag
        newest = Saved(tags, saved.keep_last, saved.protected, saved.damaged)
        attempt = (trial.next_step, f"{trial.tag}-next")
        found, _ = check_disk(run / "checkpoints", situation, newest, attempt, is_announced=True)
        return problems + found + check_tidy(run / "checkpoints", newest, attempt)


class _Writer:
    def __init__(self, pid: int, report: int) -> None:
        self.pid = pid
        self.report = report
        self.status: int | None = None
        self.text = b""


def _start(trial: Trial, run: Path) -> list[_Writer]:
    sys.stdout.flush()
    writers: list[_Writer] = []
    # They begin together, when the server closes its end.
    gate, opener = os.pipe()
    for rank in range(WORLD_SIZE):
        report, theirs = os.pipe()
        os.set_inheritable(theirs, trial.kind == "strace")
        pid = os.fork()
        if pid == 0:
            os.close(opener)
            _become_writer(trial, rank, run, theirs, gate)
        os.close(theirs)
        writers.append(_Writer(pid, report))
        # A group of their own: one of them may be told to kill all of it.
        os.setpgid(pid, writers[0].pid)
    os.close(gate)
    os.close(opener)
    return writers


def _become_writer(trial: Trial, rank: int, run: Path, report: int, gate: int) -> None:
    code = 1
    try:
        os.read(gate, 1)
        if os.getpgid(0) == os.getpgid(os.getppid()):
            os._exit(3)
        if trial.kind == "strace" and rank == trial.victim:
            words = command(trial, rank, run, report)
            os.execvp(words[0], words)
        run_writer(trial, rank, run, report)
        code = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os._exit(code)


def _collect(writers: list[_Writer]) -> tuple[list[list[dict[str, Any]]], bool]:
    """Wait until every writer has ended; a hang ends them."""
    deadline = time.monotonic() + _HANG_SECONDS
    hung = False
    open_writers = {writer.report: writer for writer in writers}
    while open_writers:
        ready, _, _ = select.select(
            list(open_writers), [], [], max(0.0, deadline - time.monotonic())
        )
        if not ready:
            hung = True
            _end(writers)
            deadline = time.monotonic() + 10
        for report in ready:
            chunk = os.read(report, 1 << 16)
            open_writers[report].text += chunk
            if not chunk:
                os.close(report)
                del open_writers[report]
    for writer in writers:
        _reap(writer)
    return [[json.loads(line) for line in writer.text.splitlines()] for writer in writers], hung


def _wait(writers: list[_Writer], only: int) -> None:
    _reap(writers[only])


def _reap(writer: _Writer) -> None:
    if writer.status is None:
        _, status = os.waitpid(writer.pid, 0)
        writer.status = os.waitstatus_to_exitcode(status)


def _end(writers: list[_Writer]) -> None:
    for writer in writers:
        if writer.status is None:
            os.kill(writer.pid, signal.SIGKILL)


def main() -> None:
    """Serve until the input ends."""
    base = Path(sys.argv[1])
    # What it warns of is what the trials provoke.
    logging.disable(logging.WARNING)
    server = Server(base)
    for line in sys.stdin:
        try:
            verdict = server.run(Trial(**json.loads(line)))
        except Exception:  # noqa: BLE001
            verdict = {"violations": [f"the checks failed: {traceback.format_exc()}"]}
        sys.stdout.write(json.dumps(verdict) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

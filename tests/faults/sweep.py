"""Many trials on several servers at once; the waiting for time limits overlaps."""

import contextlib
import errno
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from writers import Trial

HERE = Path(__file__).resolve().parent

# More than cores: a trial with a killed writer mostly waits for its time limit.
_SERVERS = 6


class Sweep:
    """A pool of trial servers."""

    def __init__(self, num_servers: int = _SERVERS, prefix: Sequence[str] = ()) -> None:
        self._num_servers = num_servers
        self._prefix = list(prefix)

    def run(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        """Return the verdict of every trial, in order."""
        verdicts: list[dict[str, Any]] = [{} for _ in trials]
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(len(trials)):
            waiting.put(number)
        with _fast_folder() as base:
            threads = [
                threading.Thread(
                    target=self._serve, args=(base / f"server-{index}", waiting, trials, verdicts)
                )
                for index in range(min(self._num_servers, len(trials)))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return verdicts

    def _serve(
        self, base: Path, waiting: Any, trials: Sequence[Trial], verdicts: list[dict[str, Any]]
    ) -> None:
        base.mkdir()
        root = HERE.parents[1]
        path = os.pathsep.join(map(str, (HERE, HERE.parent / "support", root)))
        with subprocess.Popen(
            [*self._prefix, sys.executable, str(HERE / "server.py"), str(base)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
        ) as server:
            assert server.stdin
            assert server.stdout
            with contextlib.suppress(queue.Empty):
                while True:
                    number = waiting.get_nowait()
                    server.stdin.write(json.dumps(asdict(trials[number])) + "\n")
                    server.stdin.flush()
                    line = server.stdout.readline()
                    verdicts[number] = (
                        json.loads(line) if line else {"violations": ["the server died"]}
                    )
            server.stdin.close()


@contextlib.contextmanager
def _fast_folder() -> Iterator[Path]:
    """A folder in memory where there is one: what a killed process wrote stays there as well."""
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="bigft-faults-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def list_kills(calls: Sequence[Sequence[Sequence[str]]], situation: str) -> list[Trial]:
    """Make a trial for a kill at every call of every writer.

    Args:
        calls: Per rank, the calls of a save without a fault.
        situation: Name of it.

    Returns:
        At each call the writer alone is killed, and all four at once; at each write also in its
        middle.
    """
    trials = []
    for rank, log in enumerate(calls):
        for number, (name, _) in enumerate(log, 1):
            kinds = ["kill", "kill_all"] + (["torn"] if name == "write" else [])
            trials += [Trial(situation, rank, kind, number, timeout_seconds=0.4) for kind in kinds]
    return trials


# What each call can fail with, as its manual page says.
_ERRORS = {
    "open": (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO),
    "look": (errno.EACCES, errno.EIO, errno.EMFILE),
    "write": (errno.ENOSPC, errno.EDQUOT, errno.EIO),
    "pwrite": (errno.ENOSPC,),
    "ftruncate": (errno.EIO,),
    "fsync": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "close": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "unlink": (errno.EROFS, errno.EACCES, errno.EIO),
    "rmdir": (errno.EROFS, errno.EACCES, errno.EIO),
}
_OTHER_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


def list_errors(
    calls: Sequence[Sequence[Sequence[str]]], situation: str, stride: int = 1
) -> list[Trial]:
    """Make a trial for every error of every call of every writer, and for each short write.

    Args:
        calls: Per rank, the calls of a save without a fault.
        situation: Name of it.
        stride: Take every n-th of them.
    """
    trials = []
    for rank, log in enumerate(calls):
        for number, (name, _) in enumerate(log, 1):
            if name == "write":
                trials.append(Trial(situation, rank, "short", number, has_next=True))
            answer = _answer_to(log, number, rank)
            trials += [
                Trial(situation, rank, "error", number, code, has_next=True, answer=answer)
                for code in _ERRORS.get(name, _OTHER_ERRORS)
            ]
    return trials[::stride]


def _answer_to(log: Sequence[Sequence[str]], number: int, rank: int) -> str:
    """Say how a save has to end whose call of this number fails."""
    name, path = log[number - 1]
    if name in ("mkdir", "found") and path.endswith("/state"):
        return "either"  # no error if another rank has made it already
    if rank != 0:
        return "failed"
    # The rename that commits is the last one of the new folder.
    commit = max(
        place
        for place, (word, about) in enumerate(log, 1)
        if word in ("rename", "exchange") and "/.tmp-step" in about
    )
    # What was left by others, and the note in the lock.
    if name in ("pwrite", "ftruncate") or any(mark in path for mark in ("-dead", "/.tmp-trash")):
        return "saved"
    if number <= commit:
        return "saved" if path.endswith("/.tmp-latest") else "failed"
    # Open, fsync and close of the folder: without them nobody knows whether the rename lasts.
    return "unconfirmed" if number <= commit + 3 else "saved"

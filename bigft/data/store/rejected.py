"""Raw rows that became no tokens, kept in the run folder so that nothing is lost."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NAME = "rejected.jsonl"


@dataclass(frozen=True)
class Rejected:
    """A raw row that became no tokens."""

    origin: str
    """Where it stands: `a.jsonl:3`."""

    reason: str
    content: Any
    """The row itself, so that nothing is lost."""

    is_bad: bool = True
    """Whether it could not be read; else it has nothing to learn."""


def keep_rejected(folder: Path, files: Sequence[Path]) -> None:
    """Copy the rejected rows of all stores to `rejected.jsonl`; without any there is no file."""
    target = folder / _NAME
    target.unlink(missing_ok=True)
    for file in files:
        if file.stat().st_size:
            with file.open("rb") as source, target.open("ab") as copy:
                shutil.copyfileobj(source, copy)


class RejectedLog:
    """`rejected.jsonl` of a run whose data are streamed: each row once, however often it is met.

    A stream meets a row again in each epoch, and where a run goes on within a window, or before
    what was read ahead.

    Memory: the place of each rejected row.
    """

    def __init__(self, folder: Path, *, goes_on: bool) -> None:
        """Take up the file of the interrupted run, or start without one."""
        self._file = folder / _NAME
        if not goes_on:
            self._file.unlink(missing_ok=True)
        self._seen: set[str] | None = None

    def __call__(self, rejected: Sequence[Rejected]) -> None:
        """Append the rows that are not in the file."""
        if not rejected:
            return
        if self._seen is None:
            self._seen = set(_take_up(self._file))
        with self._file.open("a", encoding="utf-8") as file:
            for row in rejected:
                if row.origin not in self._seen:
                    self._seen.add(row.origin)
                    file.write(dump_rejected(row) + "\n")


def _take_up(file: Path) -> Iterator[str]:
    """Give the places of the rows in a file, and cut off a last line that was not finished."""
    if not file.exists():
        return
    with file.open("r+b") as lines:
        complete = 0
        for line in lines:
            if not line.endswith(b"\n"):
                break
            complete += len(line)
            yield str(json.loads(line)["origin"])
        lines.truncate(complete)


def ignore_rejected(rejected: Sequence[Rejected]) -> None:
    """Do nothing: rank 0 keeps the rows."""


def dump_rejected(row: Rejected) -> str:
    """Write a rejected row as one JSON object: `origin`, `reason`, `row`."""
    line = {"origin": row.origin, "reason": row.reason, "row": row.content}
    return json.dumps(line, default=str)

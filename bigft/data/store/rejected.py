"""Raw rows that became no tokens, kept in the run folder so that nothing is lost."""

import json
import shutil
from collections.abc import Sequence
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


def append_rejected(folder: Path, rejected: Sequence[Rejected]) -> None:
    """Append rows that a stream could not use."""
    if rejected:
        with (folder / _NAME).open("a", encoding="utf-8") as file:
            file.writelines(dump_rejected(row) + "\n" for row in rejected)


def ignore_rejected(rejected: Sequence[Rejected]) -> None:
    """Do nothing: rank 0 keeps the rows."""


def dump_rejected(row: Rejected) -> str:
    """Write a rejected row as one JSON object: `origin`, `reason`, `row`."""
    line = {"origin": row.origin, "reason": row.reason, "row": row.content}
    return json.dumps(line, default=str)

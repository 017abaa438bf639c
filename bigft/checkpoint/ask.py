"""What a host has of a run's checkpoints, said to another host: `python -m bigft.checkpoint.ask`.

Reads a path from standard input and writes one JSON object to standard output.
"""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigft.checkpoint.holdings import Holding, from_plain, look_at, survey, to_plain
from bigft.checkpoint.manifest import MANIFEST_NAME
from bigft.errors import BigftError
from bigft.units import escape_controls

_KINDS = {
    "step": int,
    "sequence": int,
    "num_files": int,
    "name": str,
    "digest": str,
    "problem": str,
}


def look_for(given: Path) -> tuple[Path, list[Holding]]:
    """Find what is under a path: a checkpoint, those of a run folder, or of its `checkpoints/`.

    Returns:
        The folder that they lie in, and what is there of each.

    Raises:
        OSError: A folder cannot be listed.
    """
    if (given / MANIFEST_NAME).is_file():
        return given.parent, [look_at(given, 0)]
    for folder in (given / "checkpoints", given):
        if found := [one for one in survey(folder) if one.is_final]:
            return folder, found
    return given, []


def read_answer(text: str) -> tuple[Path, list[Holding]]:
    """Read what another host said.

    Raises:
        ValueError: It is no such answer.
    """
    try:
        answer: dict[str, Any] = json.loads(text)
        return Path(answer["folder"]), [_check(one) for one in from_plain(answer["holdings"])]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"no answer ({error!r})") from error


def _check(one: Holding) -> Holding:
    """Let pass what another host may say of a checkpoint: its name goes into a path there."""
    is_plain = all(type(getattr(one, name)) is kind for name, kind in _KINDS.items())
    if not (is_plain and all(type(name) is str for name in one.present)):
        raise ValueError("no answer (no checkpoint)")
    if not re.fullmatch(r"[^/\0]+", one.name) or one.name in (".", ".."):
        raise ValueError(f"no answer ({one.name!r:.80} is no name)")
    return replace(one, problem=escape_controls(one.problem))


def main() -> None:
    """Answer once."""
    try:
        folder, holdings = look_for(Path(sys.stdin.read().strip()))
    except (OSError, BigftError) as error:
        sys.exit(str(error))
    sys.stdout.write(json.dumps({"folder": str(folder), "holdings": to_plain(holdings)}) + "\n")


if __name__ == "__main__":
    main()

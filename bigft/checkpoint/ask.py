"""What a host has of a run's checkpoints, said to another host: `python -m bigft.checkpoint.ask`.

Reads a path from standard input and writes one JSON object to standard output.
"""

import json
import sys
from pathlib import Path
from typing import Any

from bigft.checkpoint.holdings import Holding, from_plain, look_at, survey, to_plain
from bigft.checkpoint.manifest import MANIFEST_NAME
from bigft.errors import BigftError


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
        return Path(answer["folder"]), from_plain(answer["holdings"])
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"no answer ({error!r})") from error


def main() -> None:
    """Answer once."""
    try:
        folder, holdings = look_for(Path(sys.stdin.read().strip()))
    except (OSError, BigftError) as error:
        sys.exit(str(error))
    sys.stdout.write(json.dumps({"folder": str(folder), "holdings": to_plain(holdings)}) + "\n")


if __name__ == "__main__":
    main()

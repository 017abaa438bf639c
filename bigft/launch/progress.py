"""How far a run has come: `python -m bigft.launch.progress RUN_FOLDER` prints it as JSON.

Only for the decision whether a start has brought anything. What a run goes on from is verified by
the run itself.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Progress:
    """The newest committed checkpoint of a run folder, as this host sees it."""

    commits: int = 0
    """Checkpoints that the run has committed so far, those included that are gone."""

    step: int = 0
    global_batch: int | None = None
    """Sequences per step."""


def find_progress(run: Path) -> Progress:
    """Look into a run folder; nothing is verified, and nothing that cannot be read is an error."""
    newest = max(_read_all(run), key=lambda facts: int(facts["sequence"]), default=None)
    if newest is None:
        return Progress()
    return Progress(int(newest["sequence"]), int(newest["step"]), newest.get("global_batch_size"))


def _read_all(run: Path) -> Iterator[Mapping[str, Any]]:
    for path in run.glob("checkpoints/step_*/manifest.json"):
        try:
            facts = json.loads(path.read_text())
            if {"sequence", "step"} <= facts.keys():
                yield facts
        except (OSError, ValueError, AttributeError):
            continue


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(find_progress(Path(sys.argv[1])))) + "\n")

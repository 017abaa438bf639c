"""How far a run has come: `python -m bigft.launch.progress RUN_FOLDER` prints it as JSON.

Only for the decision whether a start has brought anything. What a run goes on from is verified by
the run itself.
"""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bigft.launch.foreign import read_object, take_whole

_MOST = 10**12


@dataclass(frozen=True)
class Progress:
    """The newest committed checkpoint of a run folder, as this host sees it."""

    commits: int = 0
    """Checkpoints that the run has committed so far, those included that are gone."""

    step: int = 0
    global_batch: int | None = None
    """Sequences per step."""

    def or_later(self, other: "Progress") -> "Progress":
        """Return which of two is further: what a host that is lost knew is not taken back."""
        return max(self, other, key=lambda progress: progress.commits)

    @classmethod
    def from_line(cls, line: str) -> "Progress":
        """Read what this module prints on another host.

        Raises:
            ValueError: It is something else.
        """
        return _read(read_object(line), "commits", "global_batch")


def find_progress(run: Path) -> Progress:
    """Look into a run folder; nothing is verified, and nothing that cannot be read is an error."""
    return max(_read_all(run), key=lambda found: found.commits, default=Progress())


def _read_all(run: Path) -> Iterator[Progress]:
    for path in run.glob("checkpoints/step_*/manifest.json"):
        with contextlib.suppress(OSError, ValueError):
            yield _read(read_object(path.read_text()), "sequence", "global_batch_size")


def _read(facts: Mapping[str, Any], commits: str, batch: str) -> Progress:
    is_known = facts.get(batch) is not None
    return Progress(
        take_whole(facts, commits, 0, _MOST),
        take_whole(facts, "step", 0, _MOST),
        take_whole(facts, batch, 1, _MOST) if is_known else None,
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(find_progress(Path(sys.argv[1])))) + "\n")

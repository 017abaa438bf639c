"""`log/events.jsonl`: what happened besides steps that went well, with all the details."""

import json
import logging
import math
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class Events:
    """One object per line, with `step` and `event`; nothing is written off rank 0."""

    def __init__(self, path: Path | None) -> None:
        """Append to `path`; None writes nowhere."""
        self._path = path

    def write(self, step: int, event: str, **details: Any) -> None:
        """Append one event; numbers that JSON cannot hold become null.

        What cannot be written, on a full disk for instance, is left out: whoever has an event also
        says it.
        """
        if self._path is None:
            return
        entry = {"step": step, "event": event, **{k: _plain(v) for k, v in details.items()}}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            logger.warning("%s: %s of step %s is not kept: %s", self._path, event, step, error)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

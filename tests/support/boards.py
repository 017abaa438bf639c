"""A board for writers that are plain processes: one file per message in a folder."""

import os
import time
from pathlib import Path
from urllib.parse import quote


class DirectoryBoard:
    """Messages as files; posting is a rename, so that nobody reads half of one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def post(self, key: str, text: str) -> None:
        target = self._folder / quote(key, safe="")
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)

    def read(self, key: str, timeout_seconds: float) -> str | None:
        target = self._folder / quote(key, safe="")
        deadline = time.monotonic() + timeout_seconds
        pause = 0.0005
        while True:
            try:
                return target.read_text(encoding="utf-8")
            except FileNotFoundError:
                left = deadline - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, 0.01)

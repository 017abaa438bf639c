"""`bigft train` without the last checkpoint and the export: for rows that measure training only.

A checkpoint of a 1B model is 15 GB; writing it for every row would take longer than the training.
"""

import sys
from pathlib import Path
from typing import Any

from bigft.cli import main
from bigft.commands import training


class _NeverSaves:
    def __init__(self, *_: Any) -> None:
        pass

    def started(self, *_: Any) -> None:
        pass

    def stepped(self, *_: Any) -> None:
        pass

    def finished(self, *_: Any) -> None:
        pass


if __name__ == "__main__":
    training.Saver = _NeverSaves  # type: ignore[assignment,misc]
    training._must_exist = lambda checkpoint: Path()
    training.export = lambda *_: None  # type: ignore[assignment]
    main(["train", *sys.argv[1:]])

"""Does this install compute what plain torch does, on the hardware that it is on?"""

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bigft.config.options import SelftestOptions, read_options
from bigft.config.request import Request
from bigft.distributed.signals import StopSignals
from bigft.errors import ConfigError, TrainingError
from bigft.log import plain_console
from bigft.redact import redact_text
from bigft.selftest.launch import PLAN_NAME, EventReader, Ranks
from bigft.selftest.progress import Progress
from bigft.selftest.report import Outcome, explain, is_ok, render_json, render_table
from bigft.selftest.rows import PLACEMENTS, Row, find_config, select_rows

_MODULE = "bigft.commands.parts.selftest"
_RANKS_ON_CPU = 2


def main(request: Request) -> None:
    """Try every row and show how far it is from plain torch."""
    options = read_options(request, SelftestOptions)
    rows = select_rows(options.rows)
    for name in {PLACEMENTS[row.placement].config for row in rows}:
        find_config(name)
    if options.nvme_path is not None and not Path(options.nvme_path).is_dir():
        raise ConfigError(
            f"--nvme_path {options.nvme_path}: no such folder; make it, or name another"
        )
    ranks, device = _choose_ranks(options.num_gpus)
    place = f"{ranks} rank{'s' if ranks > 1 else ''} on {device}"
    started = time.monotonic()
    with _folder() as folder, _folder(options.nvme_path) as swap:
        outcomes = _try_all(rows, folder, swap, ranks, device, options.timeout)
    seconds = time.monotonic() - started
    page = (
        render_json(outcomes, seconds)
        if options.as_json
        else render_table(outcomes, seconds, place)
    )
    sys.stdout.write(redact_text(page) + "\n")
    if not is_ok(outcomes):
        raise TrainingError(explain(outcomes))


def _try_all(
    rows: Sequence[Row], folder: Path, swap: Path, ranks: int, device: str, timeout: float
) -> list[Outcome]:
    console, signals = plain_console(), StopSignals()
    console.say(
        f"{len(rows)} short runs, {ranks} ranks on {device}; to start them takes half a minute"
    )
    outcomes: list[Outcome] = []
    with signals.installed():
        # A run that ends its ranks does not keep the others from being tried.
        while len(outcomes) < len(rows):
            left = rows[len(outcomes) :]
            plan = {"rows": [row.to_dict() for row in left], "nvme_path": str(swap)}
            (folder / PLAN_NAME).write_text(json.dumps(plan))
            progress = Progress([row.name for row in left], timeout, console.say)
            _follow(
                Ranks(_MODULE, folder, ranks, os.environ, on_cpu=device == "cpu"),
                EventReader(folder),
                progress,
                signals,
            )
            outcomes += progress.outcomes
    return outcomes


def _follow(running: Ranks, events: EventReader, progress: Progress, signals: StopSignals) -> None:
    """Listen until the ranks have ended; whatever happens here, they end."""
    code = None
    try:
        while code is None:
            code = running.poll()
            for event in events.read():
                progress.take(event)
            signals.check("in the selftest, with nothing to keep")
            if code is None:
                progress.check()
                time.sleep(0.1)
    finally:
        running.end()
    progress.end(code, running.last_words())


@contextlib.contextmanager
def _folder(parent: str | None = None) -> Iterator[Path]:
    """Make a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="bigft-selftest-", dir=parent) as name:
        yield Path(name).resolve()


def _choose_ranks(num_gpus: int | None) -> tuple[int, str]:
    """Return how many ranks there will be, and the type of their devices.

    Raises:
        ConfigError: There are fewer devices.
    """
    import torch

    is_cpu = os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.accelerator.is_available()
    if is_cpu:
        return num_gpus or _RANKS_ON_CPU, "cpu"
    count = torch.accelerator.device_count()
    if num_gpus is not None and num_gpus > count:
        raise ConfigError(f"--num_gpus {num_gpus}: this host has {count}; leave it out to take all")
    kind = torch.accelerator.current_accelerator()
    return num_gpus or count, kind.type if kind else "cpu"

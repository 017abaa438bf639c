"""What each rank of a selftest does: `python -m bigft.commands.parts.selftest FOLDER`.

Every row is a real run, by the same line as `bigft train`: resolved from the shipped JSON, trained,
committed, exported. What rank 0 finds goes to `events.jsonl`, line by line.
"""

import io
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from bigft.commands.training import export, train
from bigft.config.request import Request
from bigft.distributed.collectives import barrier, errors_shared, local_rank_zero_first
from bigft.distributed.world import World, close_world, open_world
from bigft.engine.operators import build_operators, check_build_tools, is_built
from bigft.errors import BigftError, LaunchError
from bigft.log import Console, output_to_log
from bigft.optim.native.binding import load_native
from bigft.run.resolve import resolve
from bigft.selftest.agreement import find_disagreements, measure
from bigft.selftest.launch import EVENTS_NAME, PLAN_NAME
from bigft.selftest.reference import Course, train_plainly, write_parts
from bigft.selftest.report import AGREES, DIFFERS, NOT_RUN
from bigft.selftest.rows import PLACEMENTS, RESUMED_AT, STEPS, Row, find_config, make_settings


class Events:
    """What the parent process reads; written by rank 0 alone."""

    def __init__(self, folder: Path, *, is_rank_zero: bool) -> None:
        """Append to what an earlier launch has written."""
        self._path = folder / EVENTS_NAME if is_rank_zero else None

    def write(self, kind: str, **facts: Any) -> None:
        """Write one."""
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": kind, **facts}) + "\n")


def main(folder: Path) -> None:
    """Join the other ranks and try the rows of the plan."""
    plan = json.loads((folder / PLAN_NAME).read_text())
    rows = [Row(**row) for row in plan["rows"]]
    world = open_world()
    try:
        log = folder / "log" / f"rank_{world.rank:02d}.log"
        with output_to_log(log, is_rank_zero=world.is_rank_zero):
            try_rows(rows, folder, world, plan["nvme_path"])
    finally:
        close_world()


def try_rows(
    rows: Sequence[Row], folder: Path, world: World, nvme_path: str | None = None
) -> list[dict[str, Any]]:
    """Run rows one after another in the open process group and compare each with plain torch.

    Returns:
        One event for each row; on rank 0.

    Raises:
        LaunchError: A tool that all rows need is not there.

    Collective: every rank.
    """
    events = Events(folder, is_rank_zero=world.is_rank_zero)
    with errors_shared(), local_rank_zero_first(world):
        missing = _build(rows, world, events)
    events.write("ready")
    judge = _Judge(folder, world.size)
    with errors_shared():
        if world.is_rank_zero:
            judge.prepare(rows)
    found = []
    for number, row in enumerate(rows):
        started = time.monotonic()
        events.write("begins", row=row.name)
        if row.uses_nvme and missing:
            result = {"verdict": NOT_RUN, "problems": [missing]}
        else:
            run_folder = folder / f"run_{number:03d}-{row.name.replace('/', '-')}"
            result = _try_row(row, folder, run_folder, world, nvme_path, judge)
        found.append({"row": row.name, **result, "seconds": time.monotonic() - started})
        events.write("row", **found[-1])
    return found


def _build(rows: Sequence[Row], world: World, events: Events) -> str:
    """Build what rows need; returns why rows on NVMe cannot run, empty where they can.

    Raises:
        LaunchError: Something that others need cannot be built.
    """
    operators = ["ShareMemCommBuilder"] if world.device.type == "cpu" else []
    missing = ""
    check_build_tools(operators)
    if any(row.uses_nvme for row in rows):
        try:
            check_build_tools(["AsyncIOBuilder"])
            operators.append("AsyncIOBuilder")
        except LaunchError as error:
            missing = str(error)
    slow = [name.removesuffix("Builder") for name in operators if not is_built(name)]
    if slow:
        events.write("building", operators=slow)
    build_operators(operators)
    load_native()
    return missing


def _try_row(
    row: Row, folder: Path, run_folder: Path, world: World, nvme_path: str | None, judge: "_Judge"
) -> dict[str, Any]:
    request_of = _Requests(row, folder, world.size, nvme_path)
    console = Console(io.StringIO(), io.StringIO(), is_rank_zero=False)
    stops = [RESUMED_AT, STEPS] if row.resumed else [STEPS]
    for stop in stops:
        with errors_shared():
            resolved = resolve(request_of.steps(stop, run_folder), _environ(world))
        if world.is_rank_zero:
            run_folder.mkdir(exist_ok=True)
        barrier()
        checkpoint = train(resolved, run_folder, world, console)
    result: dict[str, Any] = {}
    with errors_shared():
        if world.is_rank_zero:
            export(resolved, checkpoint, run_folder / "model", console)
            result = judge.judge(row, run_folder)
            shutil.rmtree(run_folder)
    return result


class _Requests:
    """The command lines of a row."""

    def __init__(self, row: Row, folder: Path, ranks: int, nvme_path: str | None) -> None:
        self._config = str(find_config(PLACEMENTS[row.placement].config))
        self._settings = make_settings(row, folder, ranks, nvme_path)

    def steps(self, count: int, run_folder: Path) -> Request:
        settings = {**self._settings, "max_steps": str(count), "output_dir": str(run_folder)}
        return Request("train", settings=settings, config=self._config)


class _Judge:
    """Holds runs against the reference."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self._folder = folder
        self._ranks = ranks
        self._references: dict[tuple[str, str], Course] = {}

    def prepare(self, rows: Sequence[Row]) -> None:
        """Write the model and the data, and train the references."""
        if not (self._folder / "rows.jsonl").exists():
            write_parts(self._folder, self._ranks)
        self._start = load_file(self._folder / "model/model.safetensors")
        for key in sorted({(row.optim, row.precision) for row in rows}):
            self._references[key] = train_plainly(self._folder, self._ranks, *key)

    def judge(self, row: Row, run_folder: Path) -> dict[str, Any]:
        """Compare what a run has left with the reference."""
        found = measure(
            read_course(run_folder), self._references[row.optim, row.precision], self._start
        )
        problems = find_disagreements(found, row)
        verdict = DIFFERS if problems else AGREES
        return {"verdict": verdict, "problems": problems, "difference": found.to_dict()}


def read_course(run_folder: Path) -> Course:
    """Read what a run went through from what it has left."""
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    steps = [step for step in map(json.loads, lines) if "loss" in step]
    nan = float("nan")  # What is not finite is null in the file.
    values = {
        name: [nan if step[name] is None else step[name] for step in steps]
        for name in ("loss", "grad_norm", "learning_rate")
    }
    weights: dict[str, torch.Tensor] = {}
    for file in (run_folder / "model").glob("*.safetensors"):
        weights |= load_file(file)
    return Course(values["loss"], values["grad_norm"], values["learning_rate"], weights)


def _environ(world: World) -> Mapping[str, str]:
    return {**os.environ, "WORLD_SIZE": str(world.size)}


if __name__ == "__main__":
    try:
        main(Path(sys.argv[-1]))
    except BigftError as failure:
        # Any rank may be the one that knows; the parent shows the last of these lines.
        sys.stderr.write(f"bigft: {failure}\n")
        raise SystemExit(failure.exit_code) from None

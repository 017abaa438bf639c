"""What a sweep leaves: a table, `trials.csv`, `best.yaml`, `sweep.svg`."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigft.errors import CheckpointError, LaunchError
from bigft.redact import redact_text, redact_value
from bigft.search.conduct import trial_folder
from bigft.search.plan import Plan, shorten
from bigft.search.plot import render_plot
from bigft.search.record import Record, find_baseline, find_best, rank
from bigft.units import format_seconds

BEST_NAME = "best.yaml"
TABLE_NAME = "trials.csv"
PLOT_NAME = "sweep.svg"

_LONGEST_NOTE = 100


def write_results(plan: Plan, records: Sequence[Record]) -> None:
    """Write the files of a sweep folder anew, each whole or not at all.

    Raises:
        LaunchError: One cannot be written.
    """
    files = {TABLE_NAME: render_csv(plan, records), PLOT_NAME: render_plot(plan, records)}
    best = find_best(records, maximize=plan.maximize)
    if best is not None:
        files[BEST_NAME] = render_recipe(plan, best)
    for name, text in files.items():
        _write(plan.folder / name, text)


def render_recipe(plan: Plan, best: Record) -> str:
    """Return a recipe that repeats the best trial: its own, with its DeepSpeed JSON named in it."""
    resolved = trial_folder(plan.folder, best.number) / "resolved"
    recipe = _read(resolved / "run.yaml")
    body = [line for line in recipe.splitlines() if not line.startswith("# ") or "***" in line]
    ranks = plan.options.num_gpus
    start = (
        "bigft train" if ranks is None else f"deepspeed --num_gpus {ranks} launch_scripts/run.py"
    )
    found = redact_value(dict(best.settings))
    return "\n".join(
        [
            f"# The best of a sweep: trial {best.number}, {plan.options.metric} {best.value}.",
            *(f"#   {path}: {json.dumps(text)}" for path, text in found.items()),
            f"# To repeat it: {start} --recipe {json.dumps(str(plan.folder / BEST_NAME))}",
            f"config: {json.dumps(str(resolved / 'ds_config.json'))}",
            *body,
            "",
        ]
    )


def render_csv(plan: Plan, records: Sequence[Record]) -> str:
    """Return every trial in the order of its number, with a column for each searched setting."""
    paths = [parameter.path for parameter in plan.space]
    head = ["trial", "state", plan.options.metric, "baseline", "seconds", "exit_code"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*head, *paths, "reason"])
    for record in records:
        value = "" if record.value is None else repr(record.value)
        code = "" if record.exit_code is None else record.exit_code
        numbers = [record.number, record.state, value, str(record.is_baseline).lower()]
        settings = [redact_value(record.settings.get(path, ""), path) for path in paths]
        row = [*numbers, f"{record.seconds:.1f}", code, *settings, redact_text(record.reason)]
        writer.writerow([_defuse(cell) for cell in row])
    return file.getvalue()


def render_json(plan: Plan, records: Sequence[Record]) -> str:
    """Return the one object of `--json`."""
    best = find_best(records, maximize=plan.maximize)
    baseline = find_baseline(records)
    found = {
        "metric": plan.options.metric,
        "direction": "maximize" if plan.maximize else "minimize",
        "best": None if best is None else best.to_dict(),
        "baseline": None if baseline is None else baseline.to_dict(),
        "trials": [record.to_dict() for record in rank(records, maximize=plan.maximize)],
        "folder": str(plan.folder),
        "recipe": None if best is None else str(plan.folder / BEST_NAME),
    }
    return json.dumps(redact_value(found))


def render_table(plan: Plan, records: Sequence[Record]) -> str:
    """Return the table of all trials, best first, and where everything is."""
    paths = [parameter.path for parameter in plan.space]
    head = ["trial", plan.options.metric, *paths, "state", "time", ""]
    rows = [_row(record, paths) for record in rank(records, maximize=plan.maximize)]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [
        "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]
    return "\n".join([*lines, "", *_summary(plan, records)]) + "\n"


def _row(record: Record, paths: list[str]) -> list[str]:
    note = "as the settings stand" if record.is_baseline else ""
    if record.reason:
        note = f"exit code {record.exit_code}: {record.reason}"[:_LONGEST_NOTE]
    return [
        str(record.number),
        "" if record.value is None else f"{record.value:.4f}",
        *(redact_value(shorten(record.settings.get(path, "")), path) for path in paths),
        record.state,
        format_seconds(record.seconds),
        redact_text(note),
    ]


def _summary(plan: Plan, records: Sequence[Record]) -> list[str]:
    best = find_best(records, maximize=plan.maximize)
    if best is None or best.value is None:
        return [f"no trial has finished; their logs are in {plan.folder / 'trials'}"]
    lines = [f"best: trial {best.number}, {plan.options.metric} {best.value:.4f}"]
    baseline = find_baseline(records)
    if baseline is not None and baseline.value is not None:
        lines[0] += f" (as the settings stand: {baseline.value:.4f})"
    lines.append(f"recipe: {plan.folder / BEST_NAME}")
    if plan.options.keep != "none":
        lines.append(f"model: {trial_folder(plan.folder, best.number) / 'model'}")
    return lines


def _defuse(cell: Any) -> Any:
    """Keep a spreadsheet from running what a trial printed: quoted text, not a formula."""
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path}: the record of the best trial cannot be read ({error}); bring it back, or move"
            " the sweep folder away and start anew"
        ) from error


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise LaunchError(
            f"{path}: cannot be written ({error.strerror}); the trials are in the study: free some"
            " space and run the same command again"
        ) from error

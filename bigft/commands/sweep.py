"""Several training runs, best first."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from bigft.config.request import Request
from bigft.data.sources.find import find_sources
from bigft.distributed.claim import claimed
from bigft.distributed.signals import StopSignals
from bigft.errors import ConfigError, LaunchError, TrainingError
from bigft.log import plain_console
from bigft.redact import redact_text
from bigft.search.conduct import run_sweep
from bigft.search.plan import Plan, plan_sweep, render_plan
from bigft.search.record import Record, find_best
from bigft.search.results import render_json, render_table, write_results
from bigft.search.study import JOURNAL_NAME, Study


def main(request: Request) -> None:
    """Plan, run every trial, and show them best first."""
    plan = plan_sweep(request, os.environ)
    data = plan.resolved.run.data
    find_sources(data.train, "--data")
    if data.eval is not None:
        find_sources(data.eval, "--eval_data")
    if plan.resolved.dry_run:
        sys.stdout.write(redact_text(render_plan(plan)))
        return
    signals = StopSignals()
    with signals.installed(), signals.awaited(), _claimed(plan.folder):
        records = _run(plan, signals)
    page = (
        f"{render_json(plan, records)}\n" if plan.options.as_json else render_table(plan, records)
    )
    sys.stdout.write(redact_text(page))
    if find_best(records, maximize=plan.maximize) is None:
        raise TrainingError(
            f"no trial of {len(records)} has finished; their logs are in {plan.folder / 'trials'},"
            " what went wrong is in the table"
        )


def _run(plan: Plan, signals: StopSignals) -> list[Record]:
    console = plain_console()
    study = Study(
        plan.folder,
        plan.space,
        sampler=plan.options.sampler,
        pruner=plan.options.pruner,
        maximize=plan.maximize,
        seed=plan.resolved.run.trainer.seed,
        total=plan.total,
    )
    study.check_same(plan.describe())
    study.begin(plan.baseline, plan.fixed, plan.grid)
    done = study.count_finished()
    console.say(f"sweep folder {plan.folder}" + (f", {done} trials done" if done else ""))
    run_sweep(plan, study, signals, console.say, lambda: write_results(plan, study.records()))
    records = study.records()
    # Once more: a sweep that was killed may have ended between a trial and its results.
    write_results(plan, records)
    return records


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Hold the sweep folder for this sweep alone.

    Raises:
        ConfigError: It cannot be written, another sweep is using it, or it is a run folder.
    """
    if (folder / "resolved").exists() and not (folder / JOURNAL_NAME).exists():
        raise ConfigError(
            f"--output_dir {folder}: holds a training run; choose another folder for the sweep"
        )
    held = contextlib.ExitStack()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(claimed(folder))
    except LaunchError as error:
        raise ConfigError(
            f"--output_dir {folder}: another sweep is writing there ({error}); wait for it, stop"
            " it, or choose another --output_dir"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"--output_dir {folder}: cannot be written ({error.strerror}); choose another folder"
        ) from error
    with held:
        yield

"""The sweep itself: one trial after the other until all have come to an end."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from bigft.checkpoint.manifest import find_best_step
from bigft.distributed.signals import StopSignals
from bigft.errors import BigftError, ConfigError, DataError, LaunchError
from bigft.search.child import (
    Child,
    MetricRows,
    build_command,
    build_environment,
    child_running,
    wait_until_free,
)
from bigft.search.plan import Plan, show_settings
from bigft.search.record import find_best
from bigft.search.study import Study, Trial
from bigft.units import format_seconds

TRIALS_NAME = "trials"

_LOOK_SECONDS = 0.2
# No other value of the searched settings repairs these: what the first trial finds, all will.
_ENDS_ALL: dict[int, type[BigftError]] = {2: ConfigError, 3: DataError}
# What a finished trial leaves behind that is large.
_LARGE = ("checkpoints", "model", "nvme")


def run_sweep(
    plan: Plan,
    study: Study,
    signals: StopSignals,
    say: Callable[[str], None],
    keep_results: Callable[[], None] = lambda: None,
) -> None:
    """Run trials until the planned number has come to an end.

    Args:
        plan: What was decided.
        study: The trials so far, and what comes next.
        signals: Looked at between and during trials.
        say: Shows a line of progress.
        keep_results: Called after every trial.

    Raises:
        StoppedError: A signal asked for it; the trial that ran goes on at the next start.
        BigftError: The first trial shows that the settings or the data cannot work.
    """
    _keep_chosen(plan, study)
    while study.count_finished() < plan.total:
        if plan.grid and not study.has_waiting():
            break
        signals.check(_place(plan, study))
        trial = study.next_trial()
        signals.place = f"in trial {trial.number} of {plan.total}, with all others in the study"
        _run_trial(plan, study, trial, signals, say)
        keep_results()
        _keep_chosen(plan, study)


def trial_folder(folder: Path, number: int) -> Path:
    """Return the run folder of a trial."""
    return folder / TRIALS_NAME / f"{number:04d}"


def _run_trial(
    plan: Plan, study: Study, trial: Trial, signals: StopSignals, say: Callable[[str], None]
) -> None:
    folder = trial_folder(plan.folder, trial.number)
    goes_on = (folder / "checkpoints").is_dir()
    _say_start(plan, trial, say, goes_on=goes_on)
    # The ranks of a sweep that was killed may still be committing there.
    wait_until_free(folder)
    settings = {} if trial.is_baseline else trial.settings
    num_gpus = plan.options.num_gpus
    command = build_command(plan.request, settings, folder, num_gpus)
    rows = MetricRows(folder, plan.options.metric)
    started = time.monotonic()
    try:
        with child_running(command, folder, build_environment(os.environ, num_gpus)) as child:
            is_pruned = _watch(child, trial, rows, signals, may_prune=plan.options.pruner != "none")
            code = child.wait()
    finally:
        trial.add_seconds(time.monotonic() - started)
    for step, value in rows.read():
        trial.report(step, value)
    _judge(plan, study, trial, rows, child, code, is_pruned=is_pruned)
    _say_end(plan, study, trial, say)


def _watch(
    child: Child, trial: Trial, rows: MetricRows, signals: StopSignals, *, may_prune: bool
) -> bool:
    """Look after a run until it ends.

    Returns:
        Whether it was stopped because the others were better.

    Raises:
        StoppedError: A signal asked the sweep to stop; the run has committed and left.
    """
    is_pruned = False
    while child.poll() is None:
        if signals.name is not None:
            child.stop()
            child.wait()
            raise signals.make_error()
        for step, value in rows.read():
            trial.report(step, value)
            if may_prune and step > 0 and not is_pruned and trial.should_be_pruned():
                is_pruned = True
                child.stop()
        time.sleep(_LOOK_SECONDS)
    return is_pruned


def _judge(
    plan: Plan,
    study: Study,
    trial: Trial,
    rows: MetricRows,
    child: Child,
    code: int,
    *,
    is_pruned: bool,
) -> None:
    """Write down how a trial ended."""
    trial.keep(exit_code=code)
    # One that was done before it heard of its end counts as done.
    value = _find_value(trial_folder(plan.folder, trial.number), rows)
    if code == 0 and value is not None:
        study.finish(trial, "complete", value)
    elif is_pruned:
        study.finish(trial, "pruned")
    else:
        words = child.last_words() if code else _explain_missing(plan, rows)
        if trial.is_first and (code in _ENDS_ALL or (not code and not rows.has_metric)):
            # Left as running: when it is repaired, the same trial is tried again.
            raise _ENDS_ALL.get(code, ConfigError)(_strip_name(words))
        trial.keep(reason=words or _explain_code(code))
        study.finish(trial, "failed")


def _find_value(folder: Path, rows: MetricRows) -> float | None:
    """Find the metric of the model that a run leaves: of its best checkpoint if it keeps one."""
    best = find_best_step(folder / "checkpoints")
    return rows.last if best is None else rows.values.get(best)


def _explain_missing(plan: Plan, rows: MetricRows) -> str:
    metric = plan.options.metric
    if rows.has_metric:
        return f"the {metric} of the model that it leaves is not finite"
    names = ", ".join(sorted(rows.names)) or "none: are there data for evaluation?"
    return f"--metric {metric}: the run has no such metric; it has {names}"


def _explain_code(code: int) -> str:
    return f"ended by signal {-code}" if code < 0 else f"left with exit code {code}"


def _strip_name(words: str) -> str:
    return words.removeprefix("bigft: ")


def _place(plan: Plan, study: Study) -> str:
    return f"after {study.count_finished()} of {plan.total} trials"


def _say_start(plan: Plan, trial: Trial, say: Callable[[str], None], *, goes_on: bool) -> None:
    what = show_settings(trial.settings)
    what += ", as the settings stand" if trial.is_baseline else ""
    what += "; goes on" if goes_on else ""
    say(f"trial {trial.number} of {plan.total}: {what}")


def _say_end(plan: Plan, study: Study, trial: Trial, say: Callable[[str], None]) -> None:
    records = study.records()
    record = records[trial.number - 1]
    metric = plan.options.metric
    took = format_seconds(record.seconds)
    if record.state == "failed":
        end = f"failed after {took} with exit code {record.exit_code}: {record.reason}"
    else:
        value = "" if record.value is None else f", {metric} {record.value:.4f}"
        end = f"{record.state} after {took}{value}"
    best = find_best(records, maximize=plan.maximize)
    known = f"; best {best.value:.4f} (trial {best.number})" if best is not None else ""
    say(f"trial {trial.number} of {plan.total}: {end}{known}")


def _keep_chosen(plan: Plan, study: Study) -> None:
    """Remove checkpoints and models that `--keep` does not keep, also those a crash left."""
    if plan.options.keep == "all":
        return
    records = study.records()
    best = find_best(records, maximize=plan.maximize)
    kept = best.number if best is not None and plan.options.keep == "best" else None
    for record in records:
        if record.state == "running" or record.number == kept:
            continue
        folder = trial_folder(plan.folder, record.number)
        for name in _LARGE:
            if (folder / name).is_dir() and not (folder / name).is_symlink():
                _remove(folder / name)


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise LaunchError(
            f"{folder}: cannot be removed ({error.strerror}); the disk would fill up with what"
            " trials leave: remove it, or use --keep all"
        ) from error

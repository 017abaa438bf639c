"""What a sweep will do, checked before any of it starts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bigft.config.deepspeed import find_value, leaves
from bigft.config.flags import FLAGS, to_path
from bigft.config.help import show_value
from bigft.config.hints import suggest
from bigft.config.options import SweepOptions, split_options
from bigft.config.request import Request
from bigft.config.typed import fields_of, find_field
from bigft.errors import BigftError, ConfigError, list_problems, raise_together
from bigft.evaluation.ranking import is_known, is_smaller_better
from bigft.redact import redact_value
from bigft.run.resolve import resolve
from bigft.run.resolved import Resolved
from bigft.run.settings import Run
from bigft.search.child import replace_settings
from bigft.search.space import (
    Parameter,
    Value,
    check_grid,
    check_no_grid,
    combine,
    read_space,
    write_value,
)

_DEFAULT_TRIALS = 20
_JUDGED_BY = "decides what trials are judged by, so they could not be compared"
_NOT_SEARCHED = {
    "output_dir": "every trial has a folder of its own",
    "dry_run": "it is no setting of a run",
    "checkpoint.resume": "a trial that was interrupted goes on by itself",
    "data.eval": _JUDGED_BY,
    "data.eval_fraction": _JUDGED_BY,
    "evaluation.max_eval_batches": _JUDGED_BY,
    "evaluation.metrics": _JUDGED_BY,
    "evaluation.generate_rows": _JUDGED_BY,
    "evaluation.generate_seconds": _JUDGED_BY,
    "evaluation.max_new_tokens": _JUDGED_BY,
}
# What does not change what a trial learns or is judged by may change between two starts.
_FREE = ("output_dir", "monitor.", "checkpoint.", "data.loading.")


@dataclass(frozen=True)
class Plan:
    """A sweep, fully decided."""

    options: SweepOptions
    space: list[Parameter]
    request: Request
    """The run that is tried, without the sweep's own options."""

    resolved: Resolved
    """That run with the settings as they stand."""

    baseline: dict[str, str]
    """Searched path -> value as it stands."""

    fixed: dict[str, Value]
    """Those of them that lie in the searched ranges."""

    grid: list[dict[str, Value]]
    """Every combination to try; empty without a grid."""

    total: int
    """Trials in all."""

    maximize: bool
    folder: Path

    def describe(self) -> dict[str, Any]:
        """Return what all trials of a sweep have in common."""
        run = redact_value(self.resolved.run.model_dump(mode="json"))
        ds = redact_value(self.resolved.ds)
        settings = {
            **{name: value for name, value in leaves(run) if not name.startswith(_FREE)},
            **{f"ds.{name}": value for name, value in leaves(ds)},
        }
        searched = {p.path: p.text for p in self.space}
        return {
            **{name: value for name, value in settings.items() if name not in searched},
            "--search": searched,
            "--sampler": self.options.sampler,
            "--metric": self.options.metric,
            "--direction": "maximize" if self.maximize else "minimize",
        }


def plan_sweep(request: Request, environ: Mapping[str, str]) -> Plan:
    """Decide everything about a sweep; nothing is started.

    Args:
        request: The parsed command line of `bigft sweep`.
        environ: Environment variables; how many ranks a trial has is told by `--num_gpus` alone.

    Raises:
        ConfigError: Something is unknown, contradictory or out of range; all of it is listed.
    """
    problems: list[str] = []
    options, base = split_options(request, SweepOptions, problems)
    if "resume" in base.settings or "checkpoint.resume" in base.settings:
        problems.append("--resume: a sweep always goes on where it was; drop the flag")
    space = read_space(options.search, problems)
    problems += _check_paths(space)
    is_grid = options.sampler == "grid"
    problems += check_grid(space) if is_grid else check_no_grid(space, options.sampler)
    maximize = _find_direction(options, problems)
    environ = {**environ, "WORLD_SIZE": str(options.num_gpus or 1)}
    resolved = _resolve(base, environ, problems)
    # Ranges of settings that exist are judged even if others are wrong: all problems at once.
    sound = [parameter for parameter in space if not any(_check_paths([parameter]))]
    choices = {} if resolved is None else _probe(base, sound, environ, problems)
    if resolved is not None:
        problems += _check_pruner(options, space, resolved)
    if problems or resolved is None:
        raise_together(ConfigError, list(dict.fromkeys(problems)))
    return _finish(options, space, base, resolved, choices, maximize=maximize)


def default_folder(run: Run) -> Path:
    """Return `runs/sweep-<model>`: without the time, so that the same command finds it again."""
    name = Path(run.model.name).expanduser()
    name = name.parent if name.name == "config.json" else name
    return Path("runs") / f"sweep-{name.resolve().name}"


def _finish(
    options: SweepOptions,
    space: list[Parameter],
    base: Request,
    resolved: Resolved,
    choices: Mapping[str, Mapping[str, Any]],
    *,
    maximize: bool,
) -> Plan:
    standing = {p.path: _read_setting(resolved, p.path) for p in space}
    found = {p.path: p.find(standing[p.path], choices.get(p.path, {})) for p in space}
    fixed = {path: value for path, value in found.items() if value is not None}
    grid = list(combine(space)) if options.sampler == "grid" else []
    total = options.trials or _DEFAULT_TRIALS
    if grid:
        # As they stand, the settings may be one of the combinations.
        whole = len(grid) + (fixed not in grid)
        total = min(options.trials or whole, whole)
    return Plan(
        options=options,
        space=space,
        request=base,
        resolved=resolved,
        # As typed where it is in the range: exact, while `show_value` rounds.
        baseline={
            path: write_value(fixed[path]) if path in fixed else show_value(value)
            for path, value in standing.items()
        },
        fixed=fixed,
        grid=grid,
        total=total,
        maximize=maximize,
        folder=Path(resolved.run.output_dir or default_folder(resolved.run))
        .expanduser()
        .absolute(),
    )


def _check_paths(space: Sequence[Parameter]) -> Iterator[str]:
    fields = dict(fields_of(Run))
    for parameter in space:
        path = parameter.path
        if path in _NOT_SEARCHED:
            yield f"--search {path}: cannot be searched: {_NOT_SEARCHED[path]}"
        elif path.startswith("ds."):
            if not all(path.split(".")):
                yield f"--search {path}: write ds.PATH, e.g. ds.gradient_clipping"
        elif find_field(fields, path) is None:
            near = suggest(path, [*FLAGS, *fields]) or "; `bigft explain` lists them all"
            yield f"--search {path}: no such setting{near}"


def _check_pruner(
    options: SweepOptions, space: Sequence[Parameter], resolved: Resolved
) -> Iterator[str]:
    steps = "evaluation.eval_steps"
    is_searched = any(parameter.path == steps for parameter in space)
    if options.pruner != "none" and not is_searched and not _read_setting(resolved, steps):
        yield (
            f"--pruner {options.pruner}: nothing to judge a trial by before its end; give"
            " --eval_steps N, or --pruner none"
        )


def _find_direction(options: SweepOptions, problems: list[str]) -> bool:
    """Say whether more of the metric is better."""
    metric = options.metric
    if not metric.startswith("eval_"):
        problems.append(
            f"--metric {metric}: must be a metric of the evaluation, whose names begin with eval_,"
            " e.g. eval_loss"
        )
    elif options.direction == "auto":
        if is_known(metric):
            return not is_smaller_better(metric)
        problems.append(
            f"--metric {metric}: say which of its values are better: --direction minimize, or"
            " --direction maximize"
        )
    return options.direction == "maximize"


def _resolve(base: Request, environ: Mapping[str, str], problems: list[str]) -> Resolved | None:
    try:
        return resolve(base, environ)
    except BigftError as error:
        if not isinstance(error, ConfigError) and not problems:
            raise
        problems += list_problems(error)
        return None


def _probe(
    base: Request, space: Sequence[Parameter], environ: Mapping[str, str], problems: list[str]
) -> dict[str, dict[str, Any]]:
    """Resolve the run at the ends of every range, one setting at a time.

    Returns:
        Path -> text -> what it becomes as a setting.
    """
    found: dict[str, dict[str, Any]] = {}
    for parameter in space:
        complaints: dict[str, str] = {}
        for text in parameter.probes():
            settings = replace_settings(base, {parameter.path: text})
            try:
                resolved = resolve(replace(base, settings=settings), environ)
            except BigftError as error:
                # One line per range is enough: its other values are wrong in the same way.
                for problem in list_problems(error):
                    complaints.setdefault(problem.partition(": ")[2] or problem, problem)
                continue
            found.setdefault(parameter.path, {})[text] = _read_setting(resolved, parameter.path)
        problems += [_explain(parameter, problem) for problem in complaints.values()]
    return found


def _explain(parameter: Parameter, problem: str) -> str:
    repair = ""
    if parameter.kind in ("log", "uniform") and "integer" in problem:
        repair = "; write int(a,b) for whole numbers"
    return f"--search {parameter}: {problem}{repair}"


def _read_setting(resolved: Resolved, path: str) -> Any:
    """Return the value of a dotted path, also of one key of a mapping, or of the JSON."""
    if path.startswith("ds."):
        return find_value(resolved.ds, path.removeprefix("ds."))
    value: Any = resolved.run
    for part in to_path(path).split("."):
        value = value.get(part) if isinstance(value, dict) else getattr(value, part)
    return value


def render_plan(plan: Plan) -> str:
    """Return the page of `bigft sweep --dry_run`."""
    width = max(len(parameter.path) for parameter in plan.space)
    searched = [f"  {p.path:{width}}  {p.text}, now {plan.baseline[p.path]}" for p in plan.space]
    better = "highest" if plan.maximize else "lowest"
    lines = [
        f"trials     {plan.total}, chosen by {plan.options.sampler}; pruner {plan.options.pruner}",
        f"best       {better} {plan.options.metric}",
        f"output     {plan.folder}",
        f"kept       checkpoints and model of: {plan.options.keep}",
        "",
        "searched:",
        *searched,
        "",
    ]
    return "\n".join(lines)


def show_settings(settings: Mapping[str, str]) -> str:
    """Return the values of a trial in one line, numbers with four digits."""
    return " ".join(f"{path}={shorten(text)}" for path, text in settings.items())


def shorten(text: str) -> str:
    """Return a number with four digits; other text stays."""
    try:
        number = json.loads(text)
    except ValueError:
        return text
    return f"{number:.4g}" if isinstance(number, float) else text

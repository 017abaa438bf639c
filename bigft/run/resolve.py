"""From a request to a `Resolved`: every setting final, every "auto" filled, every origin known.

    flags + recipe -> Run        default < recipe < flag
    file + --ds.   -> JSON       file < --ds.
    bridge         -> both agree, or an error that lists every clash
    fill           -> no "auto" left, defaults that surprise written out
    rules          -> what does not go together

Every stage adds to one list of problems, and the list is shown once.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from bigft.config.deepspeed import (
    AUTO,
    find_value,
    has_value,
    leaves,
    parse_value,
    read_json,
    set_value,
)
from bigft.config.deepspeed_check import check_config
from bigft.config.request import Request
from bigft.config.typed import Typed, fields_of, read_flags, read_recipe
from bigft.data.sources.glue import name_dev_sets
from bigft.errors import BigftError, ConfigError, DataError, raise_together
from bigft.models.facts import ModelFacts, is_local, read_facts
from bigft.planner.architecture.case import UnknownArchitectureError
from bigft.planner.job import Job
from bigft.planner.machine import Machine
from bigft.planner.templates import build_template
from bigft.redact import remember_secrets
from bigft.run.bridge import bridge
from bigft.run.choose import (
    CHOSEN,
    ORIGIN,
    Resolve,
    choose,
    find_advice,
    list_candidates,
    read_choice,
)
from bigft.run.draft import Draft
from bigft.run.fill import fill_json
from bigft.run.job import plan_run
from bigft.run.resolved import Resolved
from bigft.run.rules import RULES
from bigft.run.settings import Run, find_defaults

# From random weights, 1e-5 barely moves; 3e-4 is the usual peak for small Llama-style models.
_RATE_FROM_SCRATCH = 3e-4
MachineOf = Callable[[Resolved], Machine]

_OFFLOADS = ("offload_param", "offload_optimizer")


def resolve(
    request: Request,
    environ: Mapping[str, str],
    *,
    needs_config: bool = True,
    may_choose: bool = True,
    machine_of: MachineOf | None = None,
) -> Resolved:
    """Decide every setting of a run; without a DeepSpeed JSON the planner chooses one.

    Args:
        request: The parsed command line.
        environ: For `WORLD_SIZE`; 1 when absent.
        needs_config: False lets `explain` work without a DeepSpeed JSON.
        may_choose: False leaves it without one where the planner is to choose: another host does.
        machine_of: Describes the machine that the planner chooses for; absent: this one.

    Raises:
        ConfigError: Something is unknown, contradictory or out of range; all of it is listed.
        CheckpointError: The only problem is a damaged model folder.
        PlanError: The planner was to choose, and nothing fits.
    """
    typed, config, problems = _read_typed(request)
    if config in ("", AUTO) and not may_choose:
        return _resolve(request, environ, "", None, {}, needs_config=False)
    if config not in ("", AUTO) or not (needs_config or config):
        return _resolve(request, environ, config, None, {}, needs_config=needs_config)
    if problems:
        # Whatever is chosen, they are wrong; all others are found with them.
        return _resolve(request, environ, AUTO, build_template("zero3"), {})
    folder = _find_run_folder(typed)
    if folder is not None:
        if (choice := read_choice(folder)) is not None:
            name, values = choice
            label = f"{CHOSEN}{name})"
            return _resolve(request, environ, label, build_template(name), values)
        # It began with a JSON, and its optimizer cannot change.
        typed = {"optim.name": Typed("", "the run folder"), **typed}
    try:
        chosen, _ = choose(*_plan_with(request, environ, machine_of), typed)
    except UnknownArchitectureError as error:
        chosen = _resolve(request, environ, f"{CHOSEN}zero3)", build_template("zero3"), {})
        chosen.warnings.append(
            f"--config auto: {error}, so that nothing can be planned; zero3 is taken as it is"
        )
    return chosen


def find_repairs(
    request: Request, environ: Mapping[str, str], machine_of: MachineOf | None = None
) -> list[str]:
    """Say what to change in a run that does not fit, the fastest first.

    Args:
        request: The parsed command line.
        environ: For `WORLD_SIZE`.
        machine_of: Describes the machine; absent: this one.
    """
    return find_advice(list_candidates(*_plan_with(request, environ, machine_of), {}))


def _plan_with(
    request: Request, environ: Mapping[str, str], machine_of: MachineOf | None
) -> tuple[Resolve, Callable[[Resolved], tuple[Job, Machine]]]:
    def attempt(ds: Mapping[str, Any], values: Mapping[str, Any], label: str) -> Resolved:
        return _resolve(request, environ, label, dict(ds), values)

    def plan(resolved: Resolved) -> tuple[Job, Machine]:
        return plan_run(resolved, environ, machine_of(resolved) if machine_of else None)

    return attempt, plan


def _read_typed(request: Request) -> tuple[dict[str, Typed], str, list[str]]:
    """Read what a person has written: settings by path, and the DeepSpeed JSON's name."""
    problems: list[str] = []
    flags = {n: t for n, t in request.settings.items() if n != "dry_run" and not _is_ds(n)}
    typed = read_recipe(request.recipe, Run, problems) if request.recipe else {}
    recipe_config = typed.pop("config", None)
    typed |= read_flags(flags, Run, problems)
    config = request.config or (str(recipe_config.value) if recipe_config else "")
    return typed, config, problems


def _find_run_folder(typed: Mapping[str, Typed]) -> Path | None:
    """Find the folder of a run that goes on."""
    resume = typed.get("checkpoint.resume")
    if "output_dir" not in typed or (resume is not None and resume.value == "never"):
        return None
    folder = Path(str(typed["output_dir"].value)).expanduser()
    return folder if (folder / "checkpoints").is_dir() else None


def _resolve(
    request: Request,
    environ: Mapping[str, str],
    config: str,
    ds: dict[str, Any] | None,
    values: Mapping[str, Any],
    *,
    needs_config: bool = True,
) -> Resolved:
    """Resolve with one DeepSpeed JSON: a file, or `ds` with `config` as its name.

    Args:
        request: The parsed command line.
        environ: For `WORLD_SIZE`.
        config: Path or name of the JSON.
        ds: The JSON, where there is no file.
        values: Settings that were chosen with it; what a person has written wins.
        needs_config: Whether a JSON must be there.
    """
    typed, _, problems = _read_typed(request)
    dry_run = _read_dry_run(request, problems)
    draft = Draft(
        ds=_load_json(config, needs_config, problems) if ds is None else ds,
        label=config or "the JSON",
        typed=typed,
        world_size=_read_world_size(environ, problems),
        local_size=_read_local_size(environ),
        problems=problems,
    )
    for path, value in values.items():
        if path not in typed:
            draft.adopt(path, value, ORIGIN)
    _edit_json(draft, request)
    # Whoever prints the settings, DeepSpeed for instance: what is secret in them is known now.
    remember_secrets({path: value.value for path, value in typed.items()})
    remember_secrets(dict(leaves(draft.ds)))
    _move_recorded_swap(draft, config)
    verdict = check_config(draft.ds, draft.where)
    draft.problems += verdict.problems
    draft.warnings += verdict.warnings
    # A JSON with wrong keys or types cannot be reasoned about; the flags still can.
    is_sound = not verdict.problems
    if not is_sound:
        draft.ds = {}
    return _finish(draft, request, config, dry_run, is_sound=is_sound)


def default_output_dir(run: Run, now: datetime) -> Path:
    """Return `runs/<YYYYmmdd-HHMMSS>-<model>`; rank 0 decides it and tells the others."""
    name = Path(run.model.name).expanduser()
    if name.name in ("", ".", "..", "config.json"):
        name = name.resolve().parent if name.name == "config.json" else name.resolve()
    return Path("runs") / f"{now:%Y%m%d-%H%M%S}-{name.name}"


def with_output_dir(resolved: Resolved, path: Path | str) -> Resolved:
    """Return the same run with its folder set, and with "auto" NVMe paths below that folder."""
    folder = Path(path)
    ds, origin = copy.deepcopy(resolved.ds), dict(resolved.origin)
    for part in _OFFLOADS:
        key = f"zero_optimization.{part}.nvme_path"
        if find_value(ds, key) == AUTO:
            set_value(ds, key, str(_swap_folder(folder)))
            origin[f"ds.{key}"] = "derived: nvme/ of the run folder"
    if origin["output_dir"] == "default":
        origin["output_dir"] = "derived: time and model"
    run = resolved.run.model_copy(update={"output_dir": str(folder)})
    return replace(resolved, run=run, ds=ds, origin=origin)


def _finish(
    draft: Draft, request: Request, config: str, dry_run: bool, *, is_sound: bool
) -> Resolved:
    _adopt_of_task(draft, draft.build_run())
    _adopt_dev_sets(draft, draft.build_run())
    run = draft.build_run()
    if is_local(run.model.name) or not draft.problems:
        # A hub model is only asked for when everything else is right: it may take seconds.
        draft.facts = _facts_of(run, draft)
    _adopt_rate(draft)
    if is_sound and (draft.ds or not draft.problems):
        bridge(draft)
        run = draft.build_run()
        fill_json(draft, run)
    _apply_rules(draft, run)
    if draft.problems or draft.facts is None:
        raise_together(ConfigError, list(dict.fromkeys(draft.problems)))
    resolved = Resolved(
        run=run,
        ds=draft.ds,
        origin=_origins(draft),
        warnings=draft.warnings,
        announced=draft.announced,
        facts=draft.facts,
        world_size=draft.world_size,
        dry_run=dry_run,
        request=request,
        config=config,
    )
    return with_output_dir(resolved, run.output_dir) if run.output_dir else resolved


def _facts_of(run: Run, draft: Draft) -> ModelFacts | None:
    try:
        return read_facts(run.model)
    except BigftError as error:
        if not draft.problems and not isinstance(error, ConfigError):
            raise
        draft.problems.append(str(error))
        return None


def _adopt_of_task(draft: Draft, run: Run) -> None:
    """Let defaults follow from the task, where nobody typed something else."""
    name = run.task.name
    for path, value in find_defaults(run.task).items():
        if path not in draft.typed:
            draft.adopt(path, value, f"default of --task {name}")
    path = "optim.adam_beta1"
    is_open = path not in draft.typed and draft.is_open("optimizer.params.betas")
    if run.trainer.reptile.inner_steps and is_open:
        # The gradients of one part are not to move the weights on the next.
        draft.adopt(path, 0.0, "default of --trainer.reptile")


def _adopt_dev_sets(draft: Draft, run: Run) -> None:
    """Evaluate tasks of GLUE as it does, where nobody typed something else."""
    if run.task.name == "multitask" or {"data.eval", "data.eval_fraction"} & draft.typed.keys():
        return
    # Bad weights are an error of their own, with the data.
    with contextlib.suppress(DataError):
        if dev_sets := name_dev_sets(run.data.train):
            draft.adopt(
                "data.eval", dev_sets, f"derived: what --data {run.data.train} is judged on"
            )


def _adopt_rate(draft: Draft) -> None:
    path = "optim.learning_rate"
    if draft.facts is None or draft.facts.has_weights or path in draft.typed:
        return
    in_json = ("optimizer.params.lr", "scheduler.params.warmup_max_lr")
    if all(draft.is_open(json_path) for json_path in in_json):
        draft.adopt(path, _RATE_FROM_SCRATCH, "default for a model with random weights")


def _apply_rules(draft: Draft, run: Run) -> None:
    for rule in RULES:
        for finding in rule(draft, run):
            (draft.problems if finding.is_error else draft.warnings).append(finding.text)


def _origins(draft: Draft) -> dict[str, str]:
    origin = {path: "default" for path, _ in fields_of(Run)}
    origin |= {path: entry.source for path, entry in {**draft.typed, **draft.adopted}.items()}
    for path, _ in leaves(draft.ds):
        where = draft.where(path)
        origin[f"ds.{path}"] = f"flag {where}" if where.startswith("--") else where
    return origin


def _is_ds(name: str) -> bool:
    return name == "ds" or name.startswith("ds.")


def _read_dry_run(request: Request, problems: list[str]) -> bool:
    text = request.settings.get("dry_run", "false").lower()
    if text not in ("true", "false"):
        problems.append(f"--dry_run={text}: must be true or false")
    return text == "true"


def _read_world_size(environ: Mapping[str, str], problems: list[str]) -> int:
    text = environ.get("WORLD_SIZE", "1")
    if not text.isdigit() or int(text) < 1:
        problems.append(f"WORLD_SIZE={text} in the environment: must be a whole number above 0")
        return 1
    return int(text)


def _read_local_size(environ: Mapping[str, str]) -> int:
    text = environ.get("LOCAL_SIZE") or environ.get("LOCAL_WORLD_SIZE") or ""
    return int(text) if text.isdecimal() else 0


def _load_json(config: str, needs_config: bool, problems: list[str]) -> dict[str, Any]:
    if not config and not needs_config:
        return {}
    try:
        return read_json(config)
    except ConfigError as error:
        problems.append(str(error))
        return {}


def _edit_json(draft: Draft, request: Request) -> None:
    """Apply the `--ds.` flags; each names one path of the JSON."""
    for name, text in request.settings.items():
        if not _is_ds(name):
            continue
        path = name.removeprefix("ds").removeprefix(".")
        if not path or not all(path.split(".")):
            draft.problems.append(f"--{name}: write --ds.PATH=VALUE, e.g. --ds.bf16.enabled=true")
            continue
        parts = path.split(".")
        places = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        made = [place for place in places[:-1] if not has_value(draft.ds, place)]
        draft.edits |= dict.fromkeys([*made, path], path)
        try:
            set_value(draft.ds, path, parse_value(text))
        except ConfigError as error:
            draft.problems.append(str(error))


def _move_recorded_swap(draft: Draft, config: str) -> None:
    """Give a repeated run its own swap folder.

    `resolved/ds_config.json` holds the first run's folder. When that came from "auto", a repeat
    must not write into the first run.
    """
    file = Path(config).expanduser()
    if file.parent.name != "resolved":
        return
    for part in _OFFLOADS:
        key = f"zero_optimization.{part}.nvme_path"
        if find_value(draft.ds, key) == str(_swap_folder(file.parent.parent)):
            set_value(draft.ds, key, AUTO)


def _swap_folder(run_folder: Path) -> Path:
    return run_folder.expanduser().resolve() / "nvme"


def describe_batch(resolved: Resolved) -> str:
    """Return the batch equation with its numbers."""
    trainer = resolved.run.trainer
    micro, accumulation = trainer.per_device_train_batch_size, trainer.gradient_accumulation_steps
    total = math.prod((micro, accumulation, resolved.world_size))
    return (
        f"{total} sequences per step = {micro} per rank x {accumulation} accumulation steps x "
        f"{resolved.world_size} rank{'s' if resolved.world_size > 1 else ''}"
    )

"""What DeepSpeed's JSON and the Run both know: one owner, one value, or an error.

    JSON "auto" or absent          -> filled from the Run
    JSON concrete, Run untouched   -> the Run adopts it, so that logs show the truth
    both written, and different    -> a clash; all clashes are listed together

Only values that somebody wrote can clash: comparing with defaults that nobody typed is what
makes other trainers refuse correct files.
"""

import json
import math
from typing import Any

from bigft.config.deepspeed import AUTO, find_value
from bigft.config.deepspeed_keys import WARMUP_PARAMS
from bigft.config.flags import to_flag
from bigft.run.draft import Draft
from bigft.run.settings import Run

_ADAM = ("adam", "adamw")

# JSON path <- Run path. A list in the JSON takes one Run path per element.
_ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("gradient_clipping", ("optim.max_grad_norm",)),
    ("train_micro_batch_size_per_gpu", ("trainer.per_device_train_batch_size",)),
    ("gradient_accumulation_steps", ("trainer.gradient_accumulation_steps",)),
    ("scheduler.params.warmup_max_lr", ("optim.learning_rate",)),
    ("scheduler.params.warmup_num_steps", ("optim.warmup_steps",)),
    ("scheduler.params.total_num_steps", ("trainer.max_steps",)),
    ("optimizer.params.lr", ("optim.learning_rate",)),
    ("optimizer.params.betas", ("optim.adam_beta1", "optim.adam_beta2")),
    ("optimizer.params.eps", ("optim.adam_epsilon",)),
    ("optimizer.params.weight_decay", ("optim.weight_decay",)),
)

# Settings of bigft's own schedule that a JSON `scheduler` leaves without effect.
_SCHEDULE = ("optim.lr_scheduler_type", "optim.lr_scheduler_kwargs")

MICRO = "trainer.per_device_train_batch_size"
ACCUMULATION = "trainer.gradient_accumulation_steps"


def bridge(draft: Draft) -> None:
    """Make the JSON and the Run agree; what cannot agree becomes a problem."""
    clashes = [*_optimizer_clash(draft), *_schedule_clash(draft)]
    for path, run_paths in _ROWS:
        value = draft.get(path)
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        if len(values) != len(run_paths):
            draft.problems.append(
                f"{path} = {json.dumps(value)} ({draft.where(path)}): must hold {len(run_paths)} "
                "numbers"
            )
            continue
        for run_path, number in zip(run_paths, values, strict=True):
            clashes += _take(draft, path, run_path, number)
    if clashes:
        draft.problems.append(
            "two answers for one setting:\n"
            + "\n".join(f"     {line}" for line in clashes)
            + '\n   Set the JSON value to "auto", or drop the flag or the recipe line'
        )
    _solve_batch(draft)
    _fill_open_rows(draft)


def _take(draft: Draft, path: str, run_path: str, value: Any) -> list[str]:
    """Let the Run adopt a JSON value; return the clash when a person typed another one."""
    typed = draft.typed.get(run_path)
    if typed is None:
        if run_path not in draft.adopted:
            draft.adopt(run_path, value, draft.source(path))
        return []
    if _same(typed.value, value):
        return []
    return [f"{path} = {json.dumps(value)} ({draft.where(path)}) and {typed}"]


def _same(one: Any, other: Any) -> bool:
    try:
        return math.isclose(float(one), float(other), rel_tol=1e-12)
    except (TypeError, ValueError):
        return str(one) == str(other)


def _optimizer_clash(draft: Draft) -> list[str]:
    kind = str(draft.get("optimizer.type") or "")
    typed = draft.typed.get("optim.name")
    if not kind:
        return []
    decoupled = find_value(draft.ds, "optimizer.params.adam_w_mode") is not False
    is_adamw = kind.lower() in _ADAM and decoupled
    if typed is not None and not (is_adamw and typed.value == "adamw"):
        where = draft.where("optimizer.type")
        return [f'optimizer.type = "{kind}" ({where}) and {typed}']
    if not is_adamw:
        draft.warnings.append(
            f"optimizer.type = {kind} ({draft.where('optimizer.type')}): DeepSpeed builds this "
            "optimizer; --optim has no effect"
        )
    return []


def _schedule_clash(draft: Draft) -> list[str]:
    kind = draft.get("scheduler.type")
    if not kind:
        return []
    where = draft.where("scheduler.type")
    typed = [draft.typed[path] for path in _SCHEDULE if path in draft.typed]
    return [f'scheduler.type = "{kind}" ({where}) and {entry}' for entry in typed]


def _solve_batch(draft: Draft) -> None:
    """Solve train_batch_size = micro x accumulation x ranks for what nobody wrote."""
    run, ranks = draft.build_run(), draft.world_size
    micro = run.trainer.per_device_train_batch_size
    accumulation = run.trainer.gradient_accumulation_steps
    given = {*draft.typed, *draft.adopted}
    train = draft.get("train_batch_size")
    if not isinstance(train, int):
        train = micro * accumulation * ranks
        why = f"derived: micro-batch {micro} x accumulation {accumulation} x ranks {ranks}"
        return draft.fill("train_batch_size", train, why)
    equation = f"train_batch_size {train} ({draft.where('train_batch_size')})"
    if ACCUMULATION not in given:
        # Accumulating is exact (the loss is a mean over tokens) and needs no more memory, so the
        # micro-batch stays what it is.
        rest, path, known = micro * ranks, ACCUMULATION, f"micro-batch {micro} x ranks {ranks}"
    elif MICRO not in given:
        rest, path = accumulation * ranks, MICRO
        known = f"accumulation {accumulation} x ranks {ranks}"
    else:
        rest, path = micro * accumulation * ranks, ""
        known = f"micro-batch {micro} x accumulation {accumulation} x ranks {ranks}"
    if train % rest or (not path and train != rest):
        relation = "is no multiple of" if path else "is not"
        draft.problems.append(
            f"{equation} {relation} {known} = {rest}. Change one of them, or drop train_batch_size"
        )
    elif path:
        draft.adopt(path, train // rest, f"derived: {equation} / ({known})")
        draft.announced.append(f"{to_flag(path)} {train // rest}: {equation} / ({known})")
    return None


def _fill_open_rows(draft: Draft) -> None:
    run = draft.build_run()
    for path, run_paths in _ROWS:
        is_wanted = find_value(draft.ds, path) == AUTO or _is_written_anyway(draft, path)
        if not draft.is_open(path) or not is_wanted:
            continue
        values = [_read_run(run, run_path) for run_path in run_paths]
        if path.endswith("warmup_num_steps"):
            values = [_warmup_steps(draft, run)]
        if values[0] is None:
            draft.problems.append(
                f"{path} ({draft.where(path)}) needs --max_steps, which is not given. Give it, or "
                "drop the scheduler block and use --optim.lr_scheduler_type"
            )
            continue
        if path.endswith("warmup_num_steps") and values[0] != run.optim.warmup_steps:
            draft.adopt(run_paths[0], values[0], "derived: whole steps, at least 1")
        why = ", ".join(to_flag(run_path) for run_path in run_paths)
        draft.fill(path, values if len(values) > 1 else values[0], f"from {why}")
    if find_value(draft.ds, "scheduler.params.warmup_min_lr") == AUTO:
        draft.fill("scheduler.params.warmup_min_lr", 0.0, "derived: warm-up starts at 0")


def _is_written_anyway(draft: Draft, path: str) -> bool:
    """Say whether a path that the JSON does not mention is written out all the same.

    DeepSpeed's own defaults surprise: it clips at 1.0, warms up for 1,000 steps and has other
    moment decays, so what the Run knows is always written.
    """
    block, _, key = path.rpartition(".params.")
    if not block:
        return True
    kind = str(draft.get(f"{block}.type") or "")
    if block == "scheduler":
        return key in WARMUP_PARAMS.get(kind, ())
    return kind.lower() in _ADAM


def _warmup_steps(draft: Draft, run: Run) -> int | None:
    steps = run.optim.warmup_steps
    if 0 < steps < 1:
        if run.trainer.max_steps is None:
            return None
        steps = math.ceil(steps * run.trainer.max_steps)
    # DeepSpeed refuses 0 here.
    return max(1, int(steps))


def _read_run(run: Run, path: str) -> Any:
    value: Any = run
    for part in path.split("."):
        value = getattr(value, part)
    return value

"""The same global batch on another number of ranks than before."""

from dataclasses import replace
from typing import Any

from bigft.errors import CheckpointError
from bigft.run.resolved import Resolved

_MICRO, _ACCUMULATED = "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"


def keep_global_batch(resolved: Resolved, saved: dict[str, Any], world_size: int) -> Resolved:
    """Divide the global batch of a checkpoint among the ranks of this run.

    Sequences per rank and accumulation follow from the number of ranks; what a step learns from
    does not. With as many ranks as before another batch is a setting that was changed, unless the
    run before this one had its batch from here, for the same settings.

    Args:
        resolved: The settings of this run.
        saved: The checkpoint's manifest.
        world_size: Ranks of this run.

    Returns:
        The settings with that batch, and the one that was asked for.

    Raises:
        CheckpointError: The batch cannot be divided by this number of ranks.
    """
    before, wanted = saved.get("world_size"), saved.get("global_batch_size")
    ds = resolved.ds
    asked = ds[_MICRO], ds[_ACCUMULATED]
    is_asked_again = saved.get("asked_batch") == list(asked)
    if before is None or (before == world_size and not is_asked_again):
        return resolved
    if wanted in (None, ds["train_batch_size"]):
        return resolved
    source = f"the checkpoint was trained with {wanted} sequences per step on {before} rank(s)"
    return _divide(resolved, int(wanted), world_size, f"{before} rank(s) before", source)


def keep_launched_batch(resolved: Resolved, text: str | None, world_size: int) -> Resolved:
    """Divide the global batch of a launch's first start among the ranks of this one.

    A launch may go on with fewer hosts before its run has a checkpoint to tell the batch.

    Args:
        resolved: The settings of this run.
        text: Sequences per step, as the launcher has said it; None: there is no launcher.
        world_size: Ranks of this run.

    Raises:
        CheckpointError: The batch cannot be divided by this number of ranks.
    """
    if not text or not text.isdigit() or int(text) == resolved.ds["train_batch_size"]:
        return resolved
    source = f"the run was launched with {text} sequences per step"
    return _divide(resolved, int(text), world_size, "more ranks at the first start", source)


def _divide(resolved: Resolved, wanted: int, world_size: int, before: str, source: str) -> Resolved:
    ds = resolved.ds
    share, rest = divmod(wanted, world_size)
    if rest or not share:
        fitting = [str(n) for n in range(1, wanted + 1) if wanted % n == 0]
        raise CheckpointError(
            f"{source}, which {world_size} ranks cannot share evenly; use"
            f" {', '.join(fitting[:8])} ranks"
        )
    micro = max(n for n in range(1, min(ds[_MICRO], share) + 1) if share % n == 0)
    line = (
        f"{before}, {world_size} now: {micro} sequence(s) per rank and"
        f" {share // micro} accumulated keep the {wanted} sequences per step"
    )
    changed = _with_batch(resolved, micro, share // micro, wanted)
    asked = ds[_MICRO], ds[_ACCUMULATED]
    return replace(changed, asked_batch=asked, announced=[*resolved.announced, line])


def _with_batch(resolved: Resolved, micro: int, accumulated: int, total: int) -> Resolved:
    """Change the JSON and the Run, which have to agree: `resolved/` repeats the run."""
    ds = {_MICRO: micro, _ACCUMULATED: accumulated, "train_batch_size": total}
    trainer = {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulated,
    }
    section = resolved.run.trainer.model_copy(update=trainer)
    paths = [*(f"ds.{name}" for name in ds), *(f"trainer.{name}" for name in trainer)]
    why = f"derived: the run's {total} sequences per step"
    return replace(
        resolved,
        run=resolved.run.model_copy(update={"trainer": section}),
        ds={**resolved.ds, **ds},
        origin={**resolved.origin, **dict.fromkeys(paths, why)},
    )

"""The same global batch on another number of ranks than before."""

from dataclasses import replace
from typing import Any

from bigft.errors import CheckpointError
from bigft.run.resolve import Resolved

_MICRO, _ACCUMULATED = "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"


def keep_global_batch(resolved: Resolved, saved: dict[str, Any], world_size: int) -> Resolved:
    """Divide the global batch of a checkpoint among the ranks of this run.

    Sequences per rank and accumulation follow from the number of ranks; what a step learns from
    does not. With as many ranks as before nothing is changed: another batch is a setting then.

    Args:
        resolved: The settings of this run.
        saved: The checkpoint's manifest.
        world_size: Ranks of this run.

    Raises:
        CheckpointError: The batch cannot be divided by this number of ranks.
    """
    before, wanted = saved.get("world_size"), saved.get("global_batch_size")
    ds = resolved.ds
    if before in (None, world_size) or wanted in (None, ds["train_batch_size"]):
        return resolved
    share, rest = divmod(int(wanted), world_size)
    if rest or not share:
        fitting = [str(n) for n in range(1, wanted + 1) if wanted % n == 0]
        raise CheckpointError(
            f"the checkpoint was trained with {wanted} sequences per step on {before} rank(s),"
            f" which {world_size} ranks cannot share evenly; use {', '.join(fitting[:8])} ranks"
        )
    micro = max(n for n in range(1, min(ds[_MICRO], share) + 1) if share % n == 0)
    changed = {**ds, _MICRO: micro, _ACCUMULATED: share // micro, "train_batch_size": wanted}
    line = (
        f"{before} rank(s) before, {world_size} now: {micro} sequence(s) per rank and"
        f" {share // micro} accumulated keep the {wanted} sequences per step"
    )
    return replace(resolved, ds=changed, announced=[*resolved.announced, line])

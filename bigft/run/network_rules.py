"""What does not go together where ranks on several hosts share weights: rules, as in `rules`.

Held against DeepSpeed 0.19.8. `zero_hpz_partition_size` (hpZ) moves the same numbers another way;
quantised communication changes them, and is never chosen for anybody.
"""

from collections.abc import Iterator

from bigft.config.help import show_value
from bigft.run.draft import Draft
from bigft.run.finding import Finding
from bigft.run.settings import Run

_ZERO = "zero_optimization"
_GROUP = f"{_ZERO}.zero_hpz_partition_size"
_WEIGHTS = f"{_ZERO}.zero_quantized_weights"
_FROZEN = f"{_ZERO}.zero_quantized_nontrainable_weights"
_GRADIENTS = f"{_ZERO}.zero_quantized_gradients"
_STAGE_OF_PARAMETERS = 3


def check_second_shards(draft: Draft, run: Run) -> Iterator[Finding]:
    """Weights kept once more inside each host need stage 3 and groups that fit a host."""
    group, world = draft.get(_GROUP), draft.world_size
    if not isinstance(group, int) or group < 2:
        return
    said = f"{_GROUP} = {group} ({draft.where(_GROUP)})"
    if draft.get(f"{_ZERO}.stage") != _STAGE_OF_PARAMETERS:
        yield Finding(f"{said}: without effect below stage 3. Drop it", is_error=False)
        return
    local = min(draft.local_size or world, world)
    if draft.get(f"{_ZERO}.offload_param.device") == "nvme":
        yield Finding(
            f"{said}: DeepSpeed keeps the second shards where the weights are, and cannot on NVMe."
            " Drop it, or set --ds.zero_optimization.offload_param.device=cpu"
        )
    elif local == world > 1:
        yield Finding(
            f"{said}: all {world} ranks are on one host, where a second copy of the weights saves"
            " little. Drop it, or start ranks on other hosts",
            is_error=bool(world % group),
        )
    elif world > 1 and (world % group or local % group):
        yield Finding(
            f"{said}: {world} ranks, {local} of them on this host, cannot be divided into groups"
            f" of {group} that are each on one host. Write {local}"
        )


def check_quantised_communication(draft: Draft, run: Run) -> Iterator[Finding]:
    """Weights and gradients that are sent in fewer bits need stage 3, and change the numbers.

    That they need GPUs is said where those are known (`bigft.engine.build`).
    """
    asked = [path for path in (_WEIGHTS, _FROZEN, _GRADIENTS) if draft.get(path) is True]
    for path in asked:
        said = f"{path} = {show_value(True)} ({draft.where(path)})"
        if path == _FROZEN:
            yield Finding(
                f"{said}: weights that are not trained would be in checkpoints as codes of 8 bits"
                " without their scales. Drop it"
            )
        elif draft.get(f"{_ZERO}.stage") != _STAGE_OF_PARAMETERS:
            yield Finding(f"{said}: without effect below stage 3. Drop it", is_error=False)
        else:
            yield from _judge_quantised(draft, path, said)


def _judge_quantised(draft: Draft, path: str, said: str) -> Iterator[Finding]:
    if path == _WEIGHTS and draft.get("torch_autocast.enabled") is True:
        yield Finding(f"{said}: not with torch_autocast.enabled = true. Drop one of them")
        return
    if path == _GRADIENTS and draft.get(f"{_ZERO}.reduce_scatter") is False:
        yield Finding(f"{said}: needs {_ZERO}.reduce_scatter = true. Drop one of them")
        return
    bits = "8" if path == _WEIGHTS else "4"
    yield Finding(
        f"{said}: what ranks send has {bits} bits, so the numbers of the run are others than"
        " without it; how much that matters has not been measured with bigft",
        is_error=False,
    )

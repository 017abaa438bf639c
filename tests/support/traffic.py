"""What a real run sends: every collective of torch, counted as it is called.

Whoever calls it - DeepSpeed, bigft or torch itself - a collective passes torch's dispatcher, where
a mode sees its tensors and its group.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WHOLE = {
    "_allgather_base_": "all_gather",
    "allgather_": "all_gather",
    "allgather_coalesced_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "reduce_": "reduce",
    "broadcast_": "broadcast",
    "gather_": "gather",
    "scatter_": "scatter",
    "alltoall_": "all_to_all",
    "alltoall_base_": "all_to_all",
    "send": "send",
}
"""Operation of c10d -> what it is called here."""


class Counter(TorchDispatchMode):
    """Adds up the bytes of every collective, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[tuple[str, int], list[int]]] = []
        self._now: dict[tuple[str, int], list[int]] = defaultdict(list)

    def end_step(self) -> None:
        """Begin to count anew."""
        self.steps.append(dict(self._now))
        self._now = defaultdict(list)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.rpartition("::")[2]
            if name in WHOLE:
                kind = WHOLE[name]
                self._now[kind, _find_size(args)].append(_find_bytes(args))
            elif name not in ("barrier", "monitored_barrier_"):
                raise AssertionError(f"{name} is not counted yet")
        return func(*args, **(kwargs or {}))


def _find_size(args: Any) -> int:
    for one in args:
        if isinstance(one, torch.ScriptObject) and "ProcessGroup" in str(one._type()):
            return int(torch.distributed.ProcessGroup.unbox(one).size())
    raise AssertionError("a collective without a group")


def _find_bytes(args: Any) -> int:
    """The whole of what is gathered, scattered or added up: the larger of what goes in and out."""
    return max(_count(one) for one in args)


def _count(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, list | tuple):
        return sum(map(_count, value))
    return 0


def train_counting(settings: dict[str, Any], folder: str, config: str) -> Any:
    """A whole run; per optimizer step {(collective, ranks): bytes of each call}."""
    import runs

    from bigft.engine.engine import Engine

    counter, step = Counter(), Engine.step

    def counted(engine: Any) -> Any:
        result = step(engine)
        counter.end_step()
        return result

    Engine.step = counted
    try:
        with counter:
            runs.train(settings, folder, config)
    finally:
        Engine.step = step
    rows = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return counter.steps, rows

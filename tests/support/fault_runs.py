"""Runs in which something goes wrong on purpose; called by name through `RankPool.run`."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


def poison(
    settings: dict[str, Any], folder: str, config: str, plan: dict[int, tuple[str, int, float]]
) -> dict[str, Any]:
    """A run in which some steps get one value that is not finite.

    Args:
        settings: Of the run.
        folder: Of the run.
        config: DeepSpeed JSON.
        plan: By step (from 1): `gradient` or `loss`, the rank, and the value.

    Returns:
        What each step left behind: digests of weights and optimizer state, and whether all of it
        was finite.
    """
    import runs

    from bigft.commands import training

    seen: list[dict[str, Any]] = []
    build = training.build_hooks

    def build_watched(run: Any, engine: Any, *rest: Any, **named: Any) -> Any:
        return [_Spy(engine, plan, seen), *build(run, engine, *rest, **named)]

    training.build_hooks = build_watched
    try:
        result = runs.train(settings, folder, config)
    finally:
        training.build_hooks = build
    return {"steps": seen, **result}


class _Spy:
    """Injects before a step and looks at everything after it."""

    def __init__(self, engine: Any, plan: dict[int, tuple[str, int, float]], seen: Any) -> None:
        self._engine, self._plan, self._seen = engine, plan, seen
        self._step = 1
        self._rank = torch.distributed.get_rank()
        _, parameter = list(engine.module.named_parameters())[3]
        parameter.register_hook(self._spoil_gradient)
        backward = engine.backward

        def spoiled(loss_sum: torch.Tensor, global_tokens: int) -> None:
            kind, rank, value = self._plan.get(self._step, ("", -1, 0.0))
            if kind == "loss" and rank == self._rank:
                loss_sum = loss_sum + value
            backward(loss_sum, global_tokens)

        engine.backward = spoiled

    def _spoil_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        kind, rank, value = self._plan.get(self._step, ("", -1, 0.0))
        if kind != "gradient" or rank != self._rank:
            return gradient
        gradient = gradient.clone()
        gradient.view(-1)[7] = value
        return gradient

    def started(self, state: Any, total_steps: int) -> None:
        self._seen.append(look(self._engine))

    def stepped(self, state: Any, report: Any) -> None:
        self._step = state.step + 1
        self._seen.append(
            {
                **look(self._engine),
                "skipped": report.result.skipped,
                "norm": report.result.grad_norm,
            }
        )

    def finished(self, state: Any) -> None:
        pass


def look(engine: Any) -> dict[str, Any]:
    """Digest of weights, master weights, moments and counters of this rank."""
    finite = True
    digest = hashlib.sha256()
    names = []
    for name, tensor in _tensors(engine):
        names.append(name)
        finite = finite and bool(torch.isfinite(tensor.float()).all())
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    counters = sorted(
        {
            float(value)
            for state in engine.inner_optimizer.state.values()
            for key, value in state.items()
            if key == "step"
        }
    )
    return {"digest": digest.hexdigest(), "finite": finite, "counters": counters, "names": names}


def _tensors(engine: Any) -> Iterator[tuple[str, torch.Tensor]]:
    outer = engine.deepspeed.optimizer
    for name, parameter in engine.module.named_parameters():
        own = getattr(parameter, "ds_tensor", parameter)
        # On NVMe a parameter is a file, and this a stand-in.
        if own.numel() == getattr(own, "ds_numel", own.numel()):
            yield f"weight/{name}", own.data
    for attribute in _MASTERS:
        for index, flat in enumerate(getattr(outer, attribute, [])):
            yield f"master/{index}", flat.data
    for index, state in enumerate(engine.inner_optimizer.state.values()):
        for key, value in sorted(state.items()):
            if torch.is_tensor(value) and value.numel() > 1:
                yield f"{key}/{index}", value.data
    yield from _swapped(outer)


_MASTERS = (
    "fp32_partitioned_groups_flat",
    "single_partition_of_fp32_groups",
    "fp32_groups_flat_partition",
)
"""Where DeepSpeed keeps master weights: stage 3, stages 1 and 2, bf16 at stage 1."""


def _swapped(outer: Any) -> Iterator[tuple[str, torch.Tensor]]:
    swapper = getattr(outer, "optimizer_swapper", None)
    for info in swapper.swap_params_info.values() if swapper is not None else ():
        for path in sorted(info.get_swap_paths()):
            if Path(path).is_file():
                yield f"swap/{Path(path).name}", torch.from_file(path, size=info.numel())

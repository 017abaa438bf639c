"""Runs in which something goes wrong on purpose; called by name through `RankPool.run`."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

Plan = dict[int, tuple[str, int, float]]
"""By step (from 1): `gradient`, `loss` or `scaled_loss`, the rank, and the value."""


@contextlib.contextmanager
def _watched(build_spy: Callable[[Any], Any]) -> Iterator[None]:
    """Let a hook of the test hear of everything first."""
    from bigft.commands import training

    build = training.build_hooks

    def build_watched(run: Any, engine: Any, *rest: Any, **named: Any) -> Any:
        return [build_spy(engine), *build(run, engine, *rest, **named)]

    training.build_hooks = build_watched
    try:
        yield
    finally:
        training.build_hooks = build


class Spy:
    """A hook that does nothing."""

    def started(self, state: Any, total_steps: int) -> None:
        pass

    def stepped(self, state: Any, report: Any) -> None:
        pass

    def finished(self, state: Any) -> None:
        pass


# Values that are not finite.


def poison(settings: dict[str, Any], folder: str, config: str, plan: Plan) -> dict[str, Any]:
    """A run in which some steps get a value that is not theirs.

    Returns:
        What each step left behind, the first entry before the first step: digests of weights and
        optimizer state, whether all of it was finite, and step counters.
    """
    import runs

    from bigft.tasks.causal_lm import CausalLM

    seen: list[dict[str, Any]] = []
    loss = CausalLM.loss
    try:
        with _watched(lambda engine: _Poison(engine, plan, seen)), _fp16_allowed(settings):
            result = runs.train(settings, folder, config)
    finally:
        CausalLM.loss = loss
    return {"steps": seen, **result}


class _Poison(Spy):
    """Injects during a step, and looks at everything after it."""

    def __init__(self, engine: Any, plan: Plan, seen: list[dict[str, Any]]) -> None:
        self._engine, self._plan, self._seen = engine, plan, seen
        self._step, self._backwards = 1, 0
        self._rank = torch.distributed.get_rank()
        _, parameter = list(engine.module.named_parameters())[3]
        parameter.register_hook(self._spoil_gradient)
        self._spoil_loss()
        backward = engine.backward

        def spoiled(loss_sum: torch.Tensor, global_tokens: int) -> None:
            value = self._value("scaled_loss")
            backward(loss_sum if value is None else loss_sum * value, global_tokens)
            self._backwards += 1

        engine.backward = spoiled

    def _spoil_loss(self) -> None:
        """Make a loss infinite whose gradients are finite."""
        from bigft.tasks.causal_lm import CausalLM

        loss, spy = CausalLM.loss, self

        def spoiled(self: Any, *args: Any) -> Any:
            found, value = loss(self, *args), spy._value("loss")
            return found if value is None else replace(found, total=found.total + value)

        CausalLM.loss = spoiled

    def _value(self, kind: str) -> float | None:
        # In the first micro-batch of the step: what comes later must not hide it.
        planned, rank, value = self._plan.get(self._step, ("", -1, 0.0))
        is_now = (planned, rank) == (kind, self._rank) and self._backwards == 0
        return value if is_now else None

    def _spoil_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        value = self._value("gradient")
        if value is None:
            return gradient
        gradient = gradient.clone()
        gradient.view(-1)[7] = value
        return gradient

    def started(self, state: Any, total_steps: int) -> None:
        self._seen.append(look(self._engine))

    def stepped(self, state: Any, report: Any) -> None:
        self._step, self._backwards = state.step + 1, 0
        result = report.result
        self._seen.append(
            {**look(self._engine), "skipped": result.skipped, "lr": result.learning_rate}
        )


@contextlib.contextmanager
def _fp16_allowed(settings: dict[str, Any]) -> Iterator[None]:
    """Let a CPU compute in fp16, slowly; DeepSpeed says that it cannot."""
    from deepspeed.accelerator import get_accelerator

    if settings.get("ds.fp16.enabled") != "true":
        yield
        return
    accelerator = get_accelerator()
    accelerator.is_fp16_supported = lambda: True
    try:
        yield
    finally:
        del accelerator.is_fp16_supported


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
    counters = {
        float(value)
        for state in engine.inner_optimizer.state.values()
        for key, value in state.items()
        if key == "step"
    } | {float(kept.step) for kept in getattr(engine.inner_optimizer, "flat_states", [])}
    return {
        "digest": digest.hexdigest(),
        "finite": finite,
        "counters": sorted(counters),
        "kinds": sorted({name.partition("/")[0] for name in names}),
    }


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
    for path, numel in _swapped(outer):
        yield f"swap/{path.name}", torch.from_file(str(path), size=numel)
    with contextlib.nullcontext() if engine.host_swap is None else engine.host_swap.mapped():
        yield from _kept(engine.inner_optimizer)


def _kept(inner: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for row in (row for kept in getattr(inner, "flat_states", []) for row in kept.rows):
        name = f"{row.region.parameter}/{row.region.start}"
        yield f"weight/{name}", row.weights
        for number, tensor in enumerate([row.rest, *row.moments, *(row.scales or ())]):
            yield f"kept/{name}/{number}", tensor


_MASTERS = (
    "fp32_partitioned_groups_flat",
    "single_partition_of_fp32_groups",
    "fp32_groups_flat_partition",
)
"""Where DeepSpeed keeps master weights: stage 3, stages 1 and 2, bf16 at stage 1."""


def _swapped(outer: Any) -> Iterator[tuple[Path, int]]:
    swapper = getattr(outer, "optimizer_swapper", None)
    for info in swapper.swap_params_info.values() if swapper is not None else ():
        for path in sorted(map(Path, info.get_swap_paths())):
            if path.is_file():
                yield path, info.numel()


# Swap files.


def damage_swap(
    settings: dict[str, Any], folder: str, config: str, how: str, rank: int, step: int
) -> tuple[str, str, int]:
    """A run one of whose swap files is damaged after a step; class, text and code of its error."""
    import runs

    with _fp16_allowed(settings), _watched(lambda engine: _Damage(engine, how, rank, step)):
        return runs.try_train(settings, folder, config)


class _Damage(Spy):
    """Does to a file what a failing disk does."""

    def __init__(self, engine: Any, how: str, rank: int, step: int) -> None:
        self._engine, self._how, self._step = engine, how, step
        self._is_here = torch.distributed.get_rank() == rank
        self._before = b""

    def stepped(self, state: Any, report: Any) -> None:
        if not self._is_here:
            return
        path = self._choose()
        if state.step == self._step - 1:
            self._before = path.read_bytes()
        if state.step == self._step:
            getattr(self, f"_{self._how}")(path)

    def _choose(self) -> Path:
        """Choose a file that changes everywhere in every step."""
        if self._engine.host_swap is not None:
            return Path(min(self._engine.host_swap.folder.iterdir()))
        files = [path for path, _ in _swapped(self._engine.deepspeed.optimizer)]
        return next(path for path in files if "exp_avg-" in path.name)

    def _lose_a_write(self, path: Path) -> None:
        """Put back the third quarter of a MiB of the step before: that write never arrived."""
        start = 1 << 19
        with path.open("r+b") as file:
            file.seek(start)
            file.write(self._before[start : start + (1 << 18)])
            os.fsync(file.fileno())

    def _truncate(self, path: Path) -> None:
        os.truncate(path, path.stat().st_size - 4096)

    def _remove(self, path: Path) -> None:
        path.unlink()


def fill_disk(settings: dict[str, Any], folder: str, config: str, taken: str) -> Any:
    """A run during whose start somebody else takes the space that it has counted on."""
    import runs

    from bigft.commands import training

    build = training.build_run_engine

    def build_late(*args: Any, **named: Any) -> Any:
        if torch.distributed.get_rank() == 0:
            free = shutil.disk_usage(Path(taken).parent).free
            with Path(taken).open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, free - (4 << 20))
        torch.distributed.barrier()
        return build(*args, **named)

    training.build_run_engine = build_late
    try:
        return runs.try_train(settings, folder, config)
    finally:
        training.build_run_engine = build


# Signals.


def stop_in_evaluation(
    settings: dict[str, Any], folder: str, config: str, rank: int, batch: int
) -> tuple[str, str, int]:
    """A run of whose ranks one is asked to stop in the middle of an evaluation."""
    import io

    import runs

    from bigft.commands.parts.guards import Guards
    from bigft.commands.training import train
    from bigft.errors import BigftError
    from bigft.log import Console
    from bigft.tasks.causal_lm import CausalLM

    guards = Guards()
    score, scored = CausalLM.score, 0

    def asked(self: Any, *args: Any) -> Any:
        nonlocal scored
        scored += 1
        if scored == batch and torch.distributed.get_rank() == rank:
            guards.signals.request("SIGUSR1")
        return score(self, *args)

    CausalLM.score = asked
    Path(folder).mkdir(parents=True, exist_ok=True)
    world = runs._world()
    console = Console(io.StringIO(), io.StringIO(), is_rank_zero=world.is_rank_zero)
    resolved = runs._resolve(settings, folder, config)
    try:
        train(resolved, Path(folder), world, console, guards)
    except BigftError as error:
        return type(error).__name__, str(error), scored
    finally:
        CausalLM.score = score
    raise AssertionError("the run went through")


# Saves.


def fail_saves(settings: dict[str, Any], folder: str, config: str, steps: list[int]) -> Any:
    """A run whose rank 0 finds the disk full at some of its saves."""
    import runs
    from checkpoint_runs import full_disk_at

    with full_disk_at(steps):
        return runs.train(settings, folder, config)

"""Runs whose model writes answers at every evaluation, watched by tests."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


def train(settings: dict[str, Any], folder: str, config: str) -> dict[str, Any]:
    """A whole run; `answers` has for each evaluation (prompt, references, answer) of each row."""
    import runs

    with _kept() as kept:
        found = runs.train(settings, folder, config)
    return {**found, "answers": kept}


@contextlib.contextmanager
def _kept() -> Iterator[list[Any]]:
    from bigft.evaluation.written import Questions

    kept: list[Any] = []
    judge = Questions.judge

    def keep(self: Any, answers: Any, metrics: Any) -> Any:
        rows = zip(self.prompts, answers, strict=False)
        kept.append([(p.input_ids.tolist(), p.references, answer) for p, answer in rows])
        return judge(self, answers, metrics)

    Questions.judge = keep
    try:
        yield kept
    finally:
        Questions.judge = judge


def train_with_a_slow_clock(settings: dict[str, Any], folder: str, config: str) -> dict[str, Any]:
    """A run on whose rank 1 an hour goes by with each look at the clock."""
    from bigft.trainer import answering

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            self.now += 3600.0 * torch.distributed.get_rank()
            return self.now

    real = answering.time
    answering.time = Clock()
    try:
        return train(settings, folder, config)
    finally:
        answering.time = real


def stop_in_answer(
    settings: dict[str, Any], folder: str, config: str, rank: int, token: int
) -> tuple[str, str, int]:
    """A run of whose ranks one is asked to stop while it writes; also the number of passes."""
    import io

    import runs

    from bigft.commands.parts.guards import Guards
    from bigft.commands.training import train as train_parts
    from bigft.errors import BigftError
    from bigft.log import Console
    from bigft.trainer.answering import Answering

    guards = Guards()
    write, passes = Answering._write, 0

    def watched(self: Any, *args: Any) -> Any:
        def count(*unused: Any) -> None:
            nonlocal passes
            passes += 1
            if passes == token and torch.distributed.get_rank() == rank:
                guards.signals.request("SIGUSR1")

        hook = self._engine.module.register_forward_pre_hook(count)
        try:
            return write(self, *args)
        finally:
            hook.remove()

    Answering._write = watched
    Path(folder).mkdir(parents=True, exist_ok=True)
    world = runs._world()
    console = Console(io.StringIO(), io.StringIO(), is_rank_zero=world.is_rank_zero)
    try:
        train_parts(runs._resolve(settings, folder, config), Path(folder), world, console, guards)
    except BigftError as error:
        return type(error).__name__, str(error), passes
    finally:
        Answering._write = write
    raise AssertionError("the run went through")


def count_gathers(settings: dict[str, Any], folder: str, config: str) -> list[int]:
    """Parameters that this rank gathers in each step of a run."""
    import runs
    from deepspeed.runtime.zero.partitioned_param_coordinator import (
        PartitionedParameterCoordinator as Coordinator,
    )

    from bigft.engine.engine import Engine

    name = "_PartitionedParameterCoordinator__all_gather_params"
    gather, step = getattr(Coordinator, name), Engine.step
    counts, found = [0], []

    def count(self: Any, params: Any, *args: Any, **named: Any) -> Any:
        params = list(params)
        counts[0] += len(params)
        return gather(self, params, *args, **named)

    def note(self: Any) -> Any:
        found.append(counts[0])
        counts[0] = 0
        return step(self)

    set_training = Engine.set_training

    def begin(self: Any, training: bool) -> None:
        set_training(self, training)
        counts[0] = 0

    setattr(Coordinator, name, count)
    Engine.step, Engine.set_training = note, begin
    try:
        runs.train(settings, folder, config)
    finally:
        setattr(Coordinator, name, gather)
        Engine.step, Engine.set_training = step, set_training
    return found


def time_passes(settings: dict[str, Any], folder: str, config: str) -> list[tuple[float, int]]:
    """A run; of each evaluation the seconds that answers took, and how many forward passes."""
    import time

    import runs

    from bigft.trainer.answering import Answering

    write, found = Answering._write_own, []

    def timed(self: Any) -> Any:
        passes = 0

        def count(*unused: Any) -> None:
            nonlocal passes
            passes += 1

        hook = self._engine.module.register_forward_pre_hook(count)
        start = time.perf_counter()
        try:
            return write(self)
        finally:
            found.append((time.perf_counter() - start, passes))
            hook.remove()

    Answering._write_own = timed
    try:
        runs.train(settings, folder, config)
    finally:
        Answering._write_own = write
    return found

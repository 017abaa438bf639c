"""Rows of the selftest inside the ranks of the tests, also with a bug planted in bigft."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch


def try_rows(folder: str, patterns: list[str], bug: str = "") -> list[dict[str, Any]]:
    """Try rows, with one of the bugs below inside; what rank 0 found."""
    from runs import _world

    from bigft.commands.parts import selftest
    from bigft.selftest.rows import select_rows

    Path(folder).mkdir(parents=True, exist_ok=True)
    with BUGS[bug]() if bug else contextlib.nullcontext():
        return selftest.try_rows(select_rows(patterns), Path(folder), _world())


@contextlib.contextmanager
def _changed_backward(change: Any) -> Iterator[None]:
    """Let `change` say with which loss and which count of tokens the engine goes backward."""
    from bigft.engine.engine import Engine

    backward = Engine.backward

    def changed(engine: Any, loss_sum: Any, global_tokens: Any) -> None:
        backward(engine, *change(engine.deepspeed, loss_sum, global_tokens))

    with patch.object(Engine, "backward", changed):
        yield


def forget_accumulation() -> Any:
    """Micro-batches add up to a multiple of the mean."""

    def change(engine: Any, loss: Any, tokens: int) -> Any:
        return loss * engine.gradient_accumulation_steps(), tokens

    return _changed_backward(change)


def lose_last_micro_batch() -> Any:
    """What the last one of a step adds is lost."""

    def change(engine: Any, loss: Any, tokens: int) -> Any:
        return loss * (not engine.is_gradient_accumulation_boundary()), tokens

    return _changed_backward(change)


def lose_a_rank() -> Any:
    """One rank's gradients do not take part."""
    return _changed_backward(lambda engine, loss, n: (loss * (engine.global_rank == 0), n))


@contextlib.contextmanager
def average_over_ranks() -> Iterator[None]:
    """The mean over micro-batches and ranks of their own means, instead of over tokens."""
    from bigft.tasks.causal_lm import CausalLM

    compute, own = CausalLM.loss, []

    def counted(task: Any, forward: Any, batch: Any) -> Any:
        own.append(int((batch.labels[:, 1:] != -100).sum()))
        return compute(task, forward, batch)

    def change(engine: Any, loss: Any, _: int) -> Any:
        parts = torch.distributed.get_world_size() * engine.gradient_accumulation_steps()
        return loss, own[-1] * parts

    with patch.object(CausalLM, "loss", counted), _changed_backward(change):
        yield


@contextlib.contextmanager
def clip_before_unscaling() -> Iterator[None]:
    """Gradients are held against the limit while they are still sums over ranks."""
    from bigft.optim.host import HostAdamW

    set_scale = HostAdamW.set_scale

    def too_early(optimizer: Any, loss_scale: float, norm: Any, max_norm: float) -> None:
        set_scale(optimizer, loss_scale, norm * torch.distributed.get_world_size(), max_norm)

    with patch.object(HostAdamW, "set_scale", too_early):
        yield


@contextlib.contextmanager
def decay_everything() -> Iterator[None]:
    """Norms are decayed like matrices."""
    from bigft.commands.parts import engine as parts

    build = parts.build_groups

    def decayed(module: Any, weight_decay: float, **options: Any) -> Any:
        groups = build(module, weight_decay, **options)
        return [{**group, "weight_decay": weight_decay} for group in groups]

    with patch.object(parts, "build_groups", decayed):
        yield


@contextlib.contextmanager
def be_a_step_ahead() -> Iterator[None]:
    """Each step has the learning rate of the next one."""
    from bigft.commands.parts import engine as parts

    build = parts.build_schedule

    def ahead(*arguments: Any) -> Any:
        schedule = build(*arguments)
        schedule.step()
        return schedule

    with patch.object(parts, "build_schedule", ahead):
        yield


def _fill_moments(optimizer: Any) -> None:
    from bigft.optim.code8 import signed_code, unsigned_code

    for state in optimizer.flat_states:
        for row in state.rows:
            if row.scales is None:
                for moment in row.moments:
                    moment.zero_()
            else:
                for moment, code in zip(row.moments, (signed_code(), unsigned_code()), strict=True):
                    moment.fill_(code.zero)


@contextlib.contextmanager
def resume_without_moments() -> Iterator[None]:
    """A run that goes on begins with moments of zero."""
    from bigft.commands.parts import resume

    load = resume.load_state

    def forgetful(engine: Any, *arguments: Any) -> Any:
        load(engine, *arguments)
        _fill_moments(engine.optimizer.optimizer)

    with patch.object(resume, "load_state", forgetful):
        yield


@contextlib.contextmanager
def forget_moments() -> Iterator[None]:
    """Each step begins with moments of zero."""
    from bigft.optim.host import HostAdamW

    step = HostAdamW.step

    def forgetful(optimizer: Any) -> None:
        step(optimizer)
        _fill_moments(optimizer)

    with patch.object(HostAdamW, "step", forgetful):
        yield


@contextlib.contextmanager
def keep_bf16_masters() -> Iterator[None]:
    """What makes a bf16 weight an fp32 number is dropped after each step."""
    from bigft.optim.host import HostAdamW

    step = HostAdamW.step

    def rounding(optimizer: Any) -> None:
        step(optimizer)
        for state in optimizer.flat_states:
            for row in state.rows:
                row.rest.zero_()

    with patch.object(HostAdamW, "step", rounding):
        yield


@contextlib.contextmanager
def run_another_optimizer() -> Iterator[None]:
    """`adamw_8bit` keeps fp32 moments."""
    from bigft.optim.host import HostAdamW

    make = HostAdamW.__init__

    def other(optimizer: Any, groups: Any, **options: Any) -> None:
        make(optimizer, groups, **{**options, "moment_bits": 32})

    with patch.object(HostAdamW, "__init__", other):
        yield


def step_while_building() -> Any:
    """DeepSpeed's own optimizer of stage 0 in bf16, which counts a step too many."""
    from bigft.engine import build

    return patch.object(build, "unstepped", contextlib.nullcontext)


BUGS = {
    bug.__name__: bug
    for bug in (
        forget_accumulation,
        lose_last_micro_batch,
        lose_a_rank,
        average_over_ranks,
        clip_before_unscaling,
        decay_everything,
        be_a_step_ahead,
        resume_without_moments,
        forget_moments,
        keep_bf16_masters,
        run_another_optimizer,
        step_while_building,
    )
}

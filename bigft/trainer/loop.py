"""The loop, once, for every task."""

import time
from collections.abc import Sequence

import torch

from bigft.data.loading.loader import Loader
from bigft.distributed.place import HERE
from bigft.engine.engine import Engine
from bigft.errors import StoppedError
from bigft.monitor.meters import PhaseClock
from bigft.tasks.task import Task
from bigft.trainer.hooks import Hook, StepReport
from bigft.trainer.rendezvous import Rendezvous
from bigft.trainer.state import State

_SEEDS = 2**64
"""Seeds that torch tells apart."""


def fit(
    engine: Engine,
    task: Task,
    loader: Loader,
    state: State,
    hooks: Sequence[Hook],
    *,
    total_steps: int,
    seed: int,
    device: torch.device,
    rendezvous: Rendezvous,
) -> State:
    """Train until `total_steps` optimizer steps are done, or a hook says that it is over.

    The loss of a step is the mean over the supervised tokens of its whole global batch, so it
    does not depend on ranks, accumulation or packing.

    Args:
        engine: The model with its optimizer.
        task: What a batch's loss is.
        loader: Where batches come from, from any place on.
        state: Where to begin; advanced in place.
        hooks: Called in this order on every rank.
        total_steps: Of the whole run, those before a resume included.
        seed: Of dropout; each step draws from its own stream, so a resumed step equals itself.
        device: Of this rank.
        rendezvous: Where the ranks hear of each other's losses, and of requests to stop.

    Raises:
        StoppedError: A signal asked for it; the last hook has saved what was done.

    Collective: every rank.
    """
    clock = PhaseClock(device)
    state.is_over = False
    for hook in hooks:
        hook.started(state, total_steps)
    rendezvous.settle()
    if rendezvous.stop is not None:
        raise _make_error(
            rendezvous.stop, f"before step {state.step + 1}, with nothing new to save"
        )
    steps = loader.steps_from(state.cursor)
    engine.set_training(True)
    HERE.note(first_step=state.step + 1)
    while state.step < total_steps and not state.is_over:
        started = time.perf_counter()
        HERE.note(phase="data", step=state.step + 1, total_steps=total_steps)
        with clock.phase("data"):
            data = next(steps)
        _seed_step(seed, state.step)
        loss_sum, losses = torch.zeros((), device=device), []
        by_source: torch.Tensor | None = None
        for batch in data.micro_batches:
            HERE.note(phase="forward")
            with clock.phase("forward"):
                loss = task.loss(engine, batch.to(device))
            HERE.note(phase="backward")
            with clock.phase("backward"):
                engine.backward(loss.total, data.supervised_tokens)
            losses.append(loss.total.detach())
            loss_sum += losses[-1]
            if loss.by_source is not None:
                by_source = loss.by_source if by_source is None else by_source + loss.by_source
        rendezvous.begin(losses)
        HERE.note(phase="optimizer")
        with clock.phase("optimizer"):
            result = engine.step()
        rendezvous.settle()
        state.step += 1
        state.tokens += data.tokens
        state.epoch = data.epoch
        state.cursor = data.cursor
        state.skipped_steps += result.skipped
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if result.skipped else 0
        report = StepReport(
            loss_sum,
            data.supervised_tokens,
            data.tokens,
            time.perf_counter() - started,
            result,
            clock,
            by_source,
            rendezvous.losses,
            data.samples,
        )
        HERE.note(phase="between steps")
        for hook in hooks:
            hook.stepped(state, report)
        if rendezvous.stop is not None:
            raise _make_error(rendezvous.stop, f"at step {state.step} of {total_steps}, committed")
    for hook in hooks:
        hook.finished(state)
    return state


def _make_error(stop: str, where: str) -> StoppedError:
    error = StoppedError(f"stopped by {stop} {where}. Run the same command again to go on")
    error.is_shared = True
    return error


def _seed_step(seed: int, step: int) -> None:
    # The rank is part of the stream: dropout must differ between ranks.
    rank = torch.distributed.get_rank()
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + rank) % _SEEDS)

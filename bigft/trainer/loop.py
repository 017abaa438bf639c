"""The loop, once, for every task."""

import time
from collections.abc import Sequence

import torch

from bigft.data.loading.loader import Loader
from bigft.engine.engine import Engine
from bigft.errors import TrainingError
from bigft.monitor.meters import PhaseClock
from bigft.tasks.task import Task
from bigft.trainer.hooks import Hook, StepReport
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
    max_skipped_in_a_row: int,
) -> State:
    """Train until `total_steps` optimizer steps are done.

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
        max_skipped_in_a_row: Stop when this many steps in a row had gradients that are not finite.

    Raises:
        TrainingError: Too many steps in a row were skipped.

    Collective: every rank.
    """
    clock = PhaseClock(device)
    for hook in hooks:
        hook.started(state, total_steps)
    steps = loader.steps_from(state.cursor)
    skipped_in_a_row = 0
    engine.set_training(True)
    while state.step < total_steps:
        started = time.perf_counter()
        with clock.phase("data"):
            data = next(steps)
        _seed_step(seed, state.step)
        loss_sum = torch.zeros((), device=device)
        by_source: torch.Tensor | None = None
        for batch in data.micro_batches:
            with clock.phase("forward"):
                loss = task.loss(engine, batch.to(device))
            with clock.phase("backward"):
                engine.backward(loss.total, data.supervised_tokens)
            loss_sum += loss.total.detach()
            if loss.by_source is not None:
                by_source = loss.by_source if by_source is None else by_source + loss.by_source
        with clock.phase("optimizer"):
            result = engine.step()
        state.step += 1
        state.tokens += data.tokens
        state.epoch = data.epoch
        state.cursor = data.cursor
        state.skipped_steps += result.skipped
        skipped_in_a_row = skipped_in_a_row + 1 if result.skipped else 0
        report = StepReport(
            loss_sum,
            data.supervised_tokens,
            data.tokens,
            time.perf_counter() - started,
            result,
            clock,
            by_source,
        )
        for hook in hooks:
            hook.stepped(state, report)
        if skipped_in_a_row >= max_skipped_in_a_row:
            raise TrainingError(
                f"step {state.step}: the gradients were not finite {skipped_in_a_row} times in a"
                " row (trainer.max_skipped_in_a_row); lower --learning_rate, add"
                " --optim.warmup_steps, or look for broken rows in the data"
            )
    for hook in hooks:
        hook.finished(state)
    return state


def _seed_step(seed: int, step: int) -> None:
    # The rank is part of the stream: dropout must differ between ranks.
    rank = torch.distributed.get_rank()
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + rank) % _SEEDS)

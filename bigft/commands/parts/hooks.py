"""Who watches the loop."""

from typing import Any

import torch

from bigft.commands.parts.checkpoints import RunCheckpoints
from bigft.commands.parts.stragglers import build_stragglers
from bigft.data.build import Data
from bigft.distributed.collectives import gather_rows
from bigft.distributed.world import World
from bigft.engine.engine import Engine
from bigft.engine.host_swap import HostSwap
from bigft.errors import ConfigError
from bigft.evaluation.answers import Decoding
from bigft.evaluation.written import Questions
from bigft.log import Console
from bigft.models.facts import ModelFacts
from bigft.models.load import LoadedModel, count_parameters
from bigft.monitor.events import Events
from bigft.monitor.meters import count_flops_per_token, find_peak_flops
from bigft.monitor.sinks import Sinks
from bigft.optim.build import OptimizerPlan
from bigft.optim.host import HostAdamW
from bigft.run.goals import find_best_metric, find_patience
from bigft.run.settings import Run
from bigft.tasks.task import Task
from bigft.trainer.answering import Answering
from bigft.trainer.best import BestWatch
from bigft.trainer.evaluating import Evaluator
from bigft.trainer.health import Health
from bigft.trainer.hooks import Hook
from bigft.trainer.rendezvous import Rendezvous
from bigft.trainer.reporting import Rate, Reporter
from bigft.trainer.saving import Saver
from bigft.trainer.state import State
from bigft.trainer.stopping import EarlyStopping
from bigft.units import format_bytes


def build_hooks(
    run: Run,
    engine: Engine,
    task: Task,
    data: Data,
    facts: ModelFacts,
    model: LoadedModel,
    *,
    sinks: Sinks,
    checkpoints: RunCheckpoints,
    rendezvous: Rendezvous,
    events: Events,
    world: World,
    console: Console,
    tokenizer: Any,
    questions: Questions | None,
    states: Hook,
    plan: Hook,
) -> list[Hook]:
    """Build the hooks of a run, in the order in which they are called."""
    # Of a stream nobody knows it: the scores of attention are left out, and `mfu` is a little low.
    mean_length = data.info.get("tokens", 0) // max(data.info.get("rows", 0), 1)
    weights = count_parameters(model.module)
    if not facts.tied:
        # Looking a row up is no matrix product; a tied table is one, as the head.
        weights -= (facts.vocab_size or 0) * (facts.hidden_size or 0)
    flops = count_flops_per_token(
        weights, facts.num_layers or 0, facts.hidden_size or 0, mean_length
    )
    peak = find_peak_flops(world.device)
    rate = Rate(flops, peak * world.size if peak else None)
    hooks: list[Hook] = [
        Reporter(
            sinks,
            logging_steps=run.monitor.logging_steps,
            device=world.device,
            local_size=world.local_size,
            rate=rate,
            stream=console.err if world.is_rank_zero else None,
            sources=data.sources,
        ),
        states,
        Health(
            console.say,
            events,
            max_skipped_in_a_row=run.trainer.max_skipped_in_a_row,
            expects_overflow=bool(engine.deepspeed.fp16_enabled()),
        ),
    ]
    stragglers = build_stragglers(run.watch, engine, rendezvous, events, world, console)
    if stragglers is not None:
        hooks.append(stragglers)
    if engine.host_swap is not None:
        parameters = count_parameters(model.module)
        hooks.append(DiskWear(engine.host_swap, parameters, world.device, console))
    if data.evaluation is not None:
        answering = None
        if questions is not None:
            answering = Answering(
                engine,
                tokenizer,
                questions,
                run.evaluation.metrics,
                Decoding(
                    run.evaluation.per_device_eval_batch_size,
                    run.evaluation.max_new_tokens,
                    max_seconds=run.evaluation.generate_seconds,
                ),
                rendezvous,
                world.device,
                console.say,
            )
        hooks.append(
            Evaluator(
                run.evaluation,
                engine,
                task,
                data.evaluation,
                sinks,
                console,
                world.device,
                rendezvous,
                data.eval_sources,
                answering,
            )
        )
    hooks += _build_judges(run, data, checkpoints, console)
    hooks.append(
        Saver(
            checkpoints.save,
            checkpoints.wait,
            run.checkpoint.save_steps,
            rendezvous,
            console.say,
            events,
        )
    )
    # The last, so that saves are in what it measures.
    hooks.append(plan)
    return hooks


def _build_judges(
    run: Run, data: Data, checkpoints: RunCheckpoints, console: Console
) -> list[Hook]:
    """Build the hooks that judge evaluations: after these, and before the save.

    Raises:
        ConfigError: There is nothing to evaluate.
    """
    patience, best = find_patience(run), find_best_metric(run)
    if (patience or best) and data.evaluation is None:
        flag = best[1] if best else f"--trainer.early_stopping {run.trainer.early_stopping}"
        error = ConfigError(
            f"{flag}: no row was held out for the evaluation. Give --eval_data, or a larger"
            f" --data.eval_fraction than {run.data.eval_fraction:g}"
        )
        error.is_shared = True
        raise error
    hooks: list[Hook] = []
    if patience:
        hooks.append(EarlyStopping(patience, console.say))
    if best:
        hooks.append(BestWatch(*best, checkpoints, console.say))
    return hooks


_COUNTED_STEP = 2


class StateBytes:
    """A hook that measures the optimizer's states once they exist, after the first step."""

    def __init__(self, engine: Engine, plan: OptimizerPlan, console: Console) -> None:
        """Take what is measured and what was planned."""
        self._engine = engine
        self._plan = plan
        self._console = console
        self._measured = False

    def started(self, state: State, total_steps: int) -> None:
        """Do nothing: states are created by the first step."""

    def stepped(self, state: State, report: Any) -> None:
        """Measure once, after the first step that was not skipped."""
        if self._measured or report.result.skipped:
            return
        self._measured = True
        if isinstance(self._engine.inner_optimizer, HostAdamW):
            return  # Laid out from the start, and said then.
        found = self._engine.measure_state_bytes_per_parameter()
        planned = self._plan.state_bytes_per_parameter
        if planned and abs(found - planned) > 0.1 * planned:
            self._console.say(
                f"warning: the optimizer keeps {found:.2f} bytes of state per parameter,"
                f" {planned:g} were expected"
            )

    def finished(self, state: State) -> None:
        """Do nothing."""


class DiskWear:
    """A hook that says once how much a step moves to and from NVMe."""

    def __init__(
        self, swap: HostSwap, parameters: int, device: torch.device, console: Console
    ) -> None:
        """Take the files of this rank, and how many parameters all ranks have."""
        self._swap = swap
        self._device = device
        self._parameters = parameters
        self._console = console
        self._steps = 0
        self._before = (0, 0)

    def started(self, state: State, total_steps: int) -> None:
        """Do nothing: the first step makes the files, and reads less than the others."""

    def stepped(self, state: State, report: Any) -> None:
        """Count the second step that was not skipped. Collective: every rank."""
        if report.result.skipped or self._steps == _COUNTED_STEP:
            return
        self._steps += 1
        now = self._swap.io.bytes_read, self._swap.io.bytes_written
        if self._steps == _COUNTED_STEP:
            mine = [float(after - old) for after, old in zip(now, self._before, strict=True)]
            read, written = gather_rows(mine, self._device).sum(0).tolist()
            wear, load = (
                f"{format_bytes(int(moved))} ({moved / self._parameters:.2f} bytes per parameter)"
                for moved in (written, read)
            )
            self._console.say(f"NVMe, each optimizer step: {wear} written, {load} read")
        self._before = now

    def finished(self, state: State) -> None:
        """Do nothing."""

"""The hook that scores the held-out data from time to time."""

from collections.abc import Iterator, Sequence

import torch

from bigft.data.loading.collate import Batch
from bigft.data.loading.loader import EvalLoader
from bigft.distributed.collectives import gather_rows, gather_table
from bigft.distributed.place import HERE
from bigft.engine.engine import Engine
from bigft.evaluation.loop import describe_scores, evaluate, sum_rows
from bigft.evaluation.section import EvaluationSection
from bigft.log import Console
from bigft.monitor.sinks import Numbers, Sinks
from bigft.tasks.task import Task
from bigft.trainer.answering import Answering
from bigft.trainer.hooks import StepReport, is_due
from bigft.trainer.rendezvous import Rendezvous
from bigft.trainer.state import State


class Evaluator:
    """Evaluates at the start, every `eval_steps`, and at the end."""

    def __init__(
        self,
        section: EvaluationSection,
        engine: Engine,
        task: Task,
        loader: EvalLoader,
        sinks: Sinks,
        console: Console,
        device: torch.device,
        rendezvous: Rendezvous,
        sources: Sequence[str] = (),
        answering: Answering | None = None,
    ) -> None:
        """Hold what an evaluation needs; `answering` where the model is to write, too."""
        self._section = section
        self._engine = engine
        self._task = task
        self._loader = loader
        self._sinks = sinks
        self._console = console
        self._device = device
        self._rendezvous = rendezvous
        self._sources = sources
        self._answering = answering

    def started(self, state: State, total_steps: int) -> None:
        """Score the model as it came, unless this run is a continuation."""
        self._total_steps = total_steps
        if (self._section.eval_on_start and state.step == 0) or state.evaluation_due:
            self._evaluate(state)

    def stepped(self, state: State, report: StepReport) -> None:
        """Score when it is due."""
        if is_due(state.step, self._section.eval_steps, self._total_steps):
            self._evaluate(state)

    def finished(self, state: State) -> None:
        """Do nothing: the last step has been scored."""

    def _evaluate(self, state: State) -> None:
        """Score, unless the run is to stop: then the next one scores before its first step."""
        HERE.note(phase="evaluating")
        batches = self._until_stop(self._loader.eval_batches(self._section.max_eval_batches))
        with self._engine.evaluating():
            scores = evaluate(
                self._task,
                self._engine,
                batches,
                device=self._device,
                sum_over_ranks=lambda row: sum_rows(gather_rows(row, self._device)),
                gather=gather_table,
                sources=self._sources,
            )
            self._rendezvous.settle()
            if self._answering is not None and self._rendezvous.stop is None:
                scores |= self._answering.score(self._sources)
        self._rendezvous.settle()
        state.evaluation_due = self._rendezvous.stop is not None
        if state.evaluation_due:
            return
        state.eval_loss = scores["loss"]
        state.scores, state.scored_step = scores, state.step
        row: Numbers = {"step": state.step}
        weights = self._engine.averaging.describe() if self._engine.averaging else {}
        row.update({f"eval_{name}": value for name, value in {**scores, **weights}.items()})
        self._sinks.write(row)
        shown = describe_scores(scores, self._task.unit)
        of = "".join(f" ({name} {value:g})" for name, value in weights.items())
        self._console.say(f"evaluation at step {state.step}{of}: {shown}")

    def _until_stop(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if self._rendezvous.poll():
                return
            yield batch

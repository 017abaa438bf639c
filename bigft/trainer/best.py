"""Which of a run's checkpoints is the best, by a metric of the evaluation at the same step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from bigft.evaluation.ranking import (
    describe_direction,
    find_score,
    is_better,
    strip_prefix,
)
from bigft.trainer.hooks import StepReport
from bigft.trainer.state import State

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Best:
    """A step whose checkpoint is the best, and why."""

    metric: str
    """Without `eval_`."""
    value: float
    step: int

    def __str__(self) -> str:
        """Say it to a person."""
        return f"step {self.step}, eval_{self.metric} {self.value:.6g}"


def pick_best(metric: str, best: Best | None, state: State) -> Best | None:
    """Return which is best, a checkpoint of this step or the one that was best before.

    A step without an evaluation of its own says nothing about its checkpoint.
    """
    name = strip_prefix(metric)
    value = state.scores.get(name)
    if state.scored_step != state.step or value is None:
        return best
    is_new = is_better(name, value, best.value if best else None)
    return Best(name, value, state.step) if is_new else best


class Keeper(Protocol):
    """Remembers the best checkpoint; `RunCheckpoints` is the real one."""

    def consider_resumed(self, state: State) -> None:
        """Take an evaluation that came after its checkpoint was saved."""


class BestWatch:
    """The hook that looks for the metric in every evaluation, before a checkpoint is judged."""

    def __init__(self, metric: str, setting: str, keeper: Keeper, tell: Tell) -> None:
        """Take what is looked for, the flag that asks for it, and where to speak."""
        self._metric = strip_prefix(metric)
        self._setting = setting
        self._keeper = keeper
        self._tell = tell

    def started(self, state: State, total_steps: int) -> None:
        """Say what decides."""
        self._tell(f"the best checkpoint is kept: {describe_direction(self._metric)}")
        if state.scored_step != state.step:
            return
        # The run before may not have been asked for this metric: the next evaluation will tell.
        if state.step == 0 or self._metric in state.scores:
            self._find(state)
            self._keeper.consider_resumed(state)

    def stepped(self, state: State, report: StepReport) -> None:
        """Look at a new evaluation."""
        if state.scored_step == state.step:
            self._find(state)

    def finished(self, state: State) -> None:
        """Do nothing: the last step has been saved."""

    def _find(self, state: State) -> None:
        find_score(state.scores, self._metric, self._setting)

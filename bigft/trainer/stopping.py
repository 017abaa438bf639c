"""The hook that ends a run whose evaluations get no better (Prechelt 1998, "Early Stopping")."""

from collections.abc import Callable

from bigft.distributed.collectives import broadcast_object
from bigft.evaluation.ranking import describe_direction, find_score, is_better
from bigft.trainer.hooks import StepReport
from bigft.trainer.patience import Patience
from bigft.trainer.state import Progress, State

Tell = Callable[[str], None]


class EarlyStopping:
    """Judges every evaluation once, and asks the loop to end; the last step is saved as ever.

    Comes after the evaluation and before the save. What it knows is part of the state, so a
    resumed run decides as a whole one.
    """

    def __init__(self, patience: Patience, tell: Tell) -> None:
        """Take what to wait for, and where to speak."""
        self._patience = patience
        self._tell = tell

    def started(self, state: State, total_steps: int) -> None:
        """Say what decides; judge the evaluation before the first step. Collective: every rank."""
        waits = self._patience
        self._tell(
            f"early stopping: after {waits.evaluations} evaluations without a better"
            f" {describe_direction(waits.metric)}"
        )
        if state.progress.metric not in ("", waits.metric):
            self._tell(f"note: until now {state.progress.metric} decided; the count starts anew")
        if state.progress.metric != waits.metric:
            state.progress = Progress(waits.metric)
        # The run before may not have been asked for this metric: the next evaluation will tell.
        if state.step == 0 or waits.metric in state.scores:
            self._judge(state)
        # Also without a new evaluation: the patience may be another one than in the run before.
        self._decide(state)

    def stepped(self, state: State, report: StepReport) -> None:
        """Judge a new evaluation. Collective: every rank."""
        if self._judge(state):
            self._decide(state)

    def finished(self, state: State) -> None:
        """Do nothing: the decision has been said."""

    def _judge(self, state: State) -> bool:
        """Count the evaluation of this step, unless there is none or it was counted before.

        Raises:
            ConfigError: It does not give the metric.
        """
        progress = state.progress
        if state.scored_step != state.step or progress.judged_step == state.step:
            return False
        setting = f"--trainer.early_stopping {self._patience.metric}:{self._patience.evaluations}"
        # Ranks that disagree would wait for each other for ever: one value counts for all.
        value = broadcast_object(find_score(state.scores, progress.metric, setting))
        progress.judged_step = state.step
        if is_better(progress.metric, value, progress.best):
            progress.best, progress.best_step, progress.without_improvement = value, state.step, 0
        else:
            progress.without_improvement += 1
        return True

    def _decide(self, state: State) -> None:
        progress = state.progress
        if progress.without_improvement < self._patience.evaluations:
            return
        state.is_over = True
        best = "has never been a number"
        if progress.best is not None:
            best = f"was best at step {progress.best_step} ({progress.best:.6g})"
        self._tell(
            f"early stopping at step {state.step}: {progress.without_improvement} evaluations"
            f" without improvement; {progress.metric} {best}"
        )

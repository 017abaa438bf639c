"""The hook that saves checkpoints."""

from collections.abc import Callable
from pathlib import Path

from bigft.distributed.place import HERE
from bigft.errors import CheckpointError
from bigft.monitor.events import Events
from bigft.trainer.hooks import StepReport, is_due
from bigft.trainer.rendezvous import Rendezvous
from bigft.trainer.state import State

_MAX_FAILED_IN_A_ROW = 3
"""A disk that was full for a moment is no reason to lose a run; one that stays full is."""

Save = Callable[[State, bool], Path | None]
Tell = Callable[[str], None]


class Saver:
    """Saves every `save_steps`, when the run is asked to stop, and always after the last step."""

    def __init__(
        self,
        save: Save,
        wait: Callable[[], Path | None],
        save_steps: int,
        rendezvous: Rendezvous,
        tell: Tell,
        events: Events,
    ) -> None:
        """Take what is needed.

        Args:
            save: Writes and commits one checkpoint and returns its folder, or None when it goes on
                in the background; fails with a `CheckpointError`, and then on all ranks alike. Is
                told whether it is the last one.
            wait: Returns, or fails, when what went on is done; None when nothing did.
            save_steps: Steps between checkpoints; 0 saves only at the end.
            rendezvous: Knows of requests to stop.
            tell: Shows a line.
            events: Keeps failures.
        """
        self._save = save
        self._wait = wait
        self._save_steps = save_steps
        self._rendezvous = rendezvous
        self._tell = tell
        self._events = events
        self._failed_in_a_row = 0
        self._begun = 0
        self._is_last = False

    def started(self, state: State, total_steps: int) -> None:
        """Learn where the end is."""
        self._total_steps = total_steps

    def stepped(self, state: State, report: StepReport) -> None:
        """Save when it is due.

        Raises:
            CheckpointError: It failed, and this was the last chance: the run ends here, or it was
                the third failure in a row.
        """
        is_end = state.is_over or state.step == self._total_steps
        is_last = self._is_last = is_end or self._rendezvous.stop is not None
        if not is_last and not is_due(state.step, self._save_steps, self._total_steps):
            return
        HERE.note(phase="saving")
        self._collect(is_last)
        self._begun = state.step
        try:
            committed = self._save(state, is_last)
            if is_last:
                committed = self._wait() or committed
        except CheckpointError as error:
            self._count(error)
            self._decide(error)
        else:
            if committed is not None:
                self._failed_in_a_row = 0

    def _collect(self, is_last: bool) -> None:
        """Hear how the save in the background went; what comes next is saved all the same."""
        try:
            if self._wait() is not None:
                self._failed_in_a_row = 0
        except CheckpointError as error:
            self._count(error)
            if is_last:
                self._tell(f"warning: step {self._begun} is not saved: {error}")
            else:
                self._give_up_or_go_on(error)

    def _count(self, error: CheckpointError) -> None:
        self._failed_in_a_row += 1
        self._events.write(self._begun, "save_failed", error=str(error))

    def _decide(self, error: CheckpointError) -> None:
        """End the run, or let it go on without this checkpoint."""
        stop = self._rendezvous.stop
        if stop is not None:
            raise _explain(error, f"the run was stopped by {stop} at step {self._begun}") from error
        if self._is_last:
            raise error
        self._give_up_or_go_on(error)

    def _give_up_or_go_on(self, error: CheckpointError) -> None:
        failed = self._failed_in_a_row
        if failed == _MAX_FAILED_IN_A_ROW:
            raise _explain(error, f"{failed} saves in a row have failed") from error
        self._tell(
            f"warning: step {self._begun} is not saved: {error}. Training goes on, and stops when"
            f" {_MAX_FAILED_IN_A_ROW} saves in a row have failed (this was number {failed})"
        )

    def finished(self, state: State) -> None:
        """Do nothing: the last step has been saved."""


def _explain(error: CheckpointError, what: str) -> CheckpointError:
    explained = CheckpointError(
        f"{what}, and what came after the newest checkpoint is lost: {error}"
    )
    explained.is_shared = error.is_shared
    return explained

"""The hook that saves checkpoints."""

from collections.abc import Callable
from pathlib import Path

from bigft.errors import CheckpointError
from bigft.monitor.events import Events
from bigft.trainer.hooks import StepReport, is_due
from bigft.trainer.rendezvous import Rendezvous
from bigft.trainer.state import State

_MAX_FAILED_IN_A_ROW = 3
"""A disk that was full for a moment is no reason to lose a run; one that stays full is."""

Save = Callable[[State], Path | None]
Tell = Callable[[str], None]


class Saver:
    """Saves every `save_steps`, when the run is asked to stop, and always after the last step."""

    def __init__(
        self,
        save: Save,
        wait: Callable[[], None],
        save_steps: int,
        rendezvous: Rendezvous,
        tell: Tell,
        events: Events,
    ) -> None:
        """Take what is needed.

        Args:
            save: Writes and commits one checkpoint; fails with a `CheckpointError`, and then on
                all ranks alike. It may go on in the background.
            wait: Returns, or fails, when it is done.
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

    def started(self, state: State, total_steps: int) -> None:
        """Learn where the end is."""
        self._total_steps = total_steps

    def stepped(self, state: State, report: StepReport) -> None:
        """Save when it is due.

        Raises:
            CheckpointError: It failed, and this was the last chance: the run ends here, or it was
                the third failure in a row.
        """
        stop = self._rendezvous.stop
        if stop is None and not is_due(state.step, self._save_steps, self._total_steps):
            return
        try:
            self._save(state)
            if stop is not None or state.step == self._total_steps:
                self._wait()
            self._failed_in_a_row = 0
        except CheckpointError as error:
            self._failed_in_a_row += 1
            self._events.write(state.step, "save_failed", error=str(error))
            self._decide(state, error)

    def _decide(self, state: State, error: CheckpointError) -> None:
        """End the run, or let it go on without this checkpoint."""
        stop, failed = self._rendezvous.stop, self._failed_in_a_row
        if stop is not None:
            raise _explain(error, f"the run was stopped by {stop} at step {state.step}") from error
        if state.step == self._total_steps:
            raise error
        if failed == _MAX_FAILED_IN_A_ROW:
            raise _explain(error, f"{failed} saves in a row have failed") from error
        self._tell(
            f"warning: step {state.step} is not saved: {error}. Training goes on, and stops when"
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

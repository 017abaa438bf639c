"""The hook that saves checkpoints."""

from collections.abc import Callable
from pathlib import Path

from bigft.trainer.hooks import StepReport, is_due
from bigft.trainer.state import State

Save = Callable[[State], Path | None]


class Saver:
    """Saves every `save_steps`, and always after the last step."""

    def __init__(self, save: Save, wait: Callable[[], None], save_steps: int) -> None:
        """Take the function that saves, and the one that waits until it is done."""
        self._save = save
        self._wait = wait
        self._save_steps = save_steps

    def started(self, state: State, total_steps: int) -> None:
        """Learn where the end is."""
        self._total_steps = total_steps

    def stepped(self, state: State, report: StepReport) -> None:
        """Save when it is due."""
        if is_due(state.step, self._save_steps, self._total_steps):
            self._save(state)

    def finished(self, state: State) -> None:
        """Wait for the last save: it may be under way in the background."""
        self._wait()

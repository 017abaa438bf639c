"""How a run that fails ends: in one sentence, with the traceback in the log."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from bigft.commands.parts.guards import Guards
from bigft.distributed.failures import explain_failure
from bigft.distributed.place import HERE
from bigft.errors import BigftError
from bigft.run.resolved import Resolved

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def endings_explained(guards: Guards) -> Iterator[None]:
    """Turn what ends the block into words for people, where there are any.

    Raises:
        BigftError: What the failure is and what to do; anything unknown is raised as it is.
    """
    try:
        yield
    except Exception as error:
        signals = guards.signals
        is_stopping = signals.name is not None and not signals.is_awaited
        if isinstance(error, BigftError) or is_stopping:
            raise
        if logging.getLogger().hasHandlers():
            # Else Python would show it on the terminal.
            logger.error("the run ends here", exc_info=error)
        others = guards.explain(error)
        explained = explain_failure(error, HERE.facts)
        if explained is None:
            raise
        if others:
            explained = type(explained)(f"{explained}. {others}")
        raise explained from error


def note_run(resolved: Resolved, folder: Path) -> None:
    """Note what last words may need: where things are written, and the settings that they name."""
    run, zero = resolved.run, resolved.ds.get("zero_optimization", {})
    parts = [zero.get(name, {}) for name in ("offload_optimizer", "offload_param")]
    swaps = [part["nvme_path"] for part in parts if part.get("device") == "nvme"]
    HERE.note(
        folder=str(folder),
        folders=list(dict.fromkeys([str(folder), *map(str, swaps)])),
        micro_batch=run.trainer.per_device_train_batch_size,
        accumulation=run.trainer.gradient_accumulation_steps,
        max_length=run.data.max_length,
        activation_checkpointing=str(run.model.activation_checkpointing),
    )

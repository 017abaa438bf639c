"""What a run is judged by."""

import contextlib
from collections.abc import Iterator

from bigft.run.settings import Run
from bigft.trainer.patience import Patience, parse_patience


def find_patience(run: Run) -> Patience | None:
    """Return what early stopping waits for; None without it."""
    text = run.trainer.early_stopping
    return None if text is None else parse_patience(text)


def find_best_metric(run: Run) -> tuple[str, str] | None:
    """Return the metric of the best checkpoint and the flag that names it; None: none is kept.

    Early stopping alone keeps it where every checkpoint is of a step that is evaluated too.
    """
    if run.checkpoint.best is not None:
        return run.checkpoint.best, f"--checkpoint.best {run.checkpoint.best}"
    patience = find_patience(run)
    if patience is None or not are_saves_evaluated(run):
        return None
    return patience.metric, f"--trainer.early_stopping {run.trainer.early_stopping}"


def list_goals(run: Run) -> Iterator[tuple[str, str]]:
    """List the metrics that decide something, and the flags that name them.

    A patience that cannot be read is left out: it is reported where it is read.
    """
    if run.checkpoint.best is not None:
        yield run.checkpoint.best, f"--checkpoint.best {run.checkpoint.best}"
    with contextlib.suppress(ValueError):
        patience = find_patience(run)
        if patience is not None:
            yield patience.metric, f"--trainer.early_stopping {run.trainer.early_stopping}"


def are_saves_evaluated(run: Run) -> bool:
    """Whether each step with a checkpoint, from the settings alone, has an evaluation too."""
    save, evaluate = run.checkpoint.save_steps, run.evaluation.eval_steps
    return save > 0 and evaluate > 0 and save % evaluate == 0

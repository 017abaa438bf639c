"""Where numbers go: a file of JSON lines always, trackers by choice."""

import json
import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from bigft.errors import ConfigError
from bigft.files.lines import drop_torn_line

logger = logging.getLogger(__name__)

Numbers = dict[str, float | int | None]


class Sink(Protocol):
    """A place for rows of numbers."""

    def write(self, row: Numbers) -> None:
        """Keep one row; `row["step"]` is the optimizer step."""

    def close(self) -> None:
        """Write what is still held back."""


class JsonLines:
    """`metrics.jsonl`: one object per logged step or evaluation, readable while it grows."""

    def __init__(self, path: Path) -> None:
        """Append to `path`; a line that a crash or a full disk cut off is removed first."""
        if path.is_file():
            drop_torn_line(path)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, row: Numbers) -> None:
        """Write one line; a number that JSON cannot hold (NaN, infinity) becomes null."""
        self._file.write(json.dumps({key: _finite(value) for key, value in row.items()}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _finite(value: float | int | None) -> float | int | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class TensorBoard:
    """TensorBoard event files."""

    def __init__(self, folder: Path) -> None:
        """Write into `folder`."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))  # type: ignore[no-untyped-call]

    def write(self, row: Numbers) -> None:
        """Write every number of the row as a scalar."""
        group = "eval" if any(key.startswith("eval_") for key in row) else "train"
        for key, value in row.items():
            if key != "step" and value is not None:
                name = f"{group}/{key.removeprefix('eval_')}"
                self._writer.add_scalar(name, value, row["step"])  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()  # type: ignore[no-untyped-call]


class WandB:
    """Weights & Biases, offline unless the user is logged in there."""

    def __init__(self, project: str, folder: Path, settings: dict[str, Any]) -> None:
        """Start a run named like the run folder."""
        self._wandb = _import_extra("wandb")
        self._run = self._wandb.init(
            project=project, name=folder.name, dir=str(folder), config=settings
        )

    def write(self, row: Numbers) -> None:
        """Log the row under its step."""
        self._run.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class MLflow:
    """MLflow, at the tracking server its environment variables name."""

    def __init__(self, project: str, folder: Path, settings: dict[str, Any]) -> None:
        """Start a run named like the run folder."""
        self._mlflow = _import_extra("mlflow")
        self._mlflow.set_experiment(project)
        self._mlflow.start_run(run_name=folder.name)
        self._mlflow.log_dict(settings, "settings.json")

    def write(self, row: Numbers) -> None:
        """Log the row under its step."""
        numbers = {k: float(v) for k, v in row.items() if k != "step" and v is not None}
        self._mlflow.log_metrics(numbers, step=row["step"])

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


def _import_extra(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"--monitor.sinks asks for {name}, which is not installed; pip install 'bigft[{name}]'"
        ) from error


class Sinks:
    """All sinks of a run as one; nothing happens off rank 0.

    A full disk or a lost network does not end a run: its numbers are worth less than its weights.
    """

    def __init__(self, sinks: list[Sink], tell: Callable[[str], None] = logger.warning) -> None:
        """Hold the sinks; an empty list off rank 0.

        Args:
            sinks: Where rows go.
            tell: Shows a line, once for each sink that begins to fail.
        """
        self._sinks = sinks
        self._tell = tell
        self._failing: set[int] = set()

    def __enter__(self) -> "Sinks":
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close every sink, also after an error."""
        for sink in self._sinks:
            self._try(sink, sink.close, "at the end")

    def write(self, row: Numbers) -> None:
        """Hand one row to every sink."""
        for sink in self._sinks:
            self._try(sink, partial(sink.write, row), f"from step {row['step']} on")

    def _try(self, sink: Sink, action: Callable[[], None], when: str) -> None:
        try:
            action()
            self._failing.discard(id(sink))
        except OSError as error:
            if id(sink) not in self._failing:
                self._failing.add(id(sink))
                name = "metrics.jsonl" if isinstance(sink, JsonLines) else type(sink).__name__
                self._tell(
                    f"warning: {name}: numbers {when} may be missing"
                    f" ({error.strerror or error}); training goes on"
                )


def build_sinks(
    names: list[str],
    folder: Path,
    *,
    project: str,
    settings: dict[str, Any],
    is_rank_zero: bool,
    tell: Callable[[str], None] = logger.warning,
) -> Sinks:
    """Open `metrics.jsonl` and the sinks that were asked for, on rank 0 only."""
    if not is_rank_zero:
        return Sinks([])
    sinks: list[Sink] = [JsonLines(folder / "metrics.jsonl")]
    if "tensorboard" in names:
        sinks.append(TensorBoard(folder / "tensorboard"))
    if "wandb" in names:
        sinks.append(WandB(project, folder, settings))
    if "mlflow" in names:
        sinks.append(MLflow(project, folder, settings))
    return Sinks(sinks, tell)

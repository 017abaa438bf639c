"""Settings of logs and metrics."""

from typing import Annotated, Literal

from pydantic import Field

from bigft.config.section import Section


class MonitorSection(Section):
    """What is written down about a run, and where."""

    logging_steps: Annotated[int, Field(ge=0)] = 1
    """Optimizer steps between rows of `metrics.jsonl`; 0 writes only the last step."""

    sinks: list[Literal["tensorboard", "wandb", "mlflow"]] = ["tensorboard"]
    """Where numbers go besides `metrics.jsonl`; `wandb` and `mlflow` need their extras."""

    project: str = "bigft"
    """Project (wandb) or experiment (mlflow) the run is filed under."""


class WatchSection(Section):
    """When ranks and hosts that are silent, stand still or are slow are named, and the run ends."""

    startup_seconds: Annotated[float, Field(ge=0)] = 1800.0
    """The run ends when nothing moves on any rank for so long before its first steps are done:
    while data are tokenised, weights loaded, kernels compiled. What is read, written or tokenised
    counts as a move. 0: never."""

    steady_seconds: Annotated[float, Field(ge=0)] = 55.0
    """The same within steps, or the time of 5 usual steps where that is longer; also how long a
    rank may be stopped by a signal (SIGSTOP). 0: never. With 55 a rank is named within a minute."""

    slow_seconds: Annotated[float, Field(ge=0)] = 1800.0
    """The same while a checkpoint is saved or the model evaluated. What is read or written, and
    every batch, counts as a move. 0: never."""

    lost_seconds: Annotated[float, Field(ge=0)] = 30.0
    """The run ends when a host does not answer for so long; a line in the log says so after half of
    it. 0: never."""

    port: Annotated[int, Field(ge=0, lt=65536)] = 0
    """TCP port of rank 0's host where the other hosts report, once a second; 0: any free one."""

    straggler_fraction: Annotated[float, Field(ge=0)] = 0.2
    """A rank is named when its own work, without waiting for others, takes so much longer than the
    median of all ranks. 0: nobody is."""

    straggler_steps: Annotated[int, Field(gt=0)] = 50
    """Steps in a row for which it must be so."""

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

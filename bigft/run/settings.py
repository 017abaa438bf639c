"""`Run`: everything that describes the experiment, as a list of sections."""

from typing import Any

from bigft.checkpoint.section import CheckpointSection
from bigft.config.section import Section
from bigft.data.section import DataSection
from bigft.evaluation.section import EvaluationSection
from bigft.models.section import ModelSection
from bigft.monitor.section import MonitorSection, WatchSection
from bigft.optim.section import OptimSection
from bigft.planner.section import PlanSection
from bigft.tasks.section import TaskSection
from bigft.trainer.section import TrainerSection

DEFAULTS_OF_TASK: dict[str, dict[str, str]] = {
    "classification": {
        "model.name": "builtin/bert",
        "data.train": "builtin/modules",
        "data.packing": "none",
    },
    "regression": {
        "model.name": "builtin/bert",
        "data.train": "builtin/readability",
        "data.packing": "none",
    },
    "seq2seq": {
        "model.name": "builtin/t5",
        "data.train": "builtin/summaries",
        "data.packing": "none",
    },
    "masked_lm": {
        "model.name": "builtin/bert",
        "data.train": "builtin/prose",
        "data.packing": "none",
    },
    "multitask": {"data.packing": "none"},
}
"""Task -> settings whose defaults it changes."""


def find_defaults(task: TaskSection) -> dict[str, Any]:
    """Find the settings whose defaults a task changes; several tasks also bring their data."""
    if task.name != "multitask" or not task.parts:
        return dict(DEFAULTS_OF_TASK.get(task.name, {}))
    parts = task.parts.values()
    found: dict[str, Any] = {
        "data.packing": "none",
        "data.loading.names": list(task.parts),
        "data.train": ",".join(part.data for part in parts),
    }
    if not any(part.task == "causal_lm" for part in parts):
        found["model.name"] = "builtin/bert"
    if all(part.eval for part in parts):
        found["data.eval"] = ",".join(str(part.eval) for part in parts)
    return found


class Run(Section):
    """One training run: what is trained, on what, for how long, and where it is kept.

    The machine strategy (ZeRO stage, offload, precision, buffers) is not here: the DeepSpeed
    JSON owns it.
    """

    output_dir: str = ""
    """The run folder; absent: `runs/<time>-<model>`."""

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    task: TaskSection = TaskSection()
    optim: OptimSection = OptimSection()
    trainer: TrainerSection = TrainerSection()
    checkpoint: CheckpointSection = CheckpointSection()
    evaluation: EvaluationSection = EvaluationSection()
    monitor: MonitorSection = MonitorSection()
    watch: WatchSection = WatchSection()
    plan: PlanSection = PlanSection()

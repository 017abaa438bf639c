"""`Run`: everything that describes the experiment, as a list of sections."""

from bigft.checkpoint.section import CheckpointSection
from bigft.config.section import Section
from bigft.data.section import DataSection
from bigft.evaluation.section import EvaluationSection
from bigft.models.section import ModelSection
from bigft.monitor.section import MonitorSection
from bigft.optim.section import OptimSection
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
}
"""Task -> settings whose defaults it changes."""


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

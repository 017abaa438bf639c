"""Settings of checkpoints and of the exported model."""

from typing import Annotated, Literal

from pydantic import Field

from bigft.config.section import Section


class CheckpointSection(Section):
    """When the state is saved, what is kept, and how the model is exported."""

    save_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps between checkpoints; 0 saves only at the end."""

    resume: str = "auto"
    """`auto` continues from the newest committed checkpoint of the run folder, `never` starts
    anew, a path continues from that checkpoint."""

    keep_last: Annotated[int, Field(ge=1)] = 2
    """Committed checkpoints that rotation leaves in the run folder."""

    best: str | None = None
    """Metric of the evaluation (`loss`, `eval_accuracy`, ...) by which the best checkpoint is kept
    beside the newest ones, named in `checkpoints/best`, and exported at the end instead of the
    last; needs `--save_steps` to be a multiple of `--eval_steps`."""

    write: Literal["foreground", "background"] = "foreground"
    """`background` lets training go on once the state has been copied into host memory, which
    must hold it twice; states on NVMe are always written in the foreground."""

    timeout_seconds: Annotated[float, Field(gt=0)] = 1800.0
    """How long ranks wait for each other's files before a save counts as failed."""

    export_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of the exported model; `auto` takes the one the model was trained in."""

    max_shard_size: str = "5GB"
    """Largest safetensors file of the exported model."""

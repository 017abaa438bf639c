"""The state that a run begins with."""

from pathlib import Path
from typing import Any

from bigft.checkpoint.resume import check_fits, describe_changes
from bigft.checkpoint.state.load import load_state
from bigft.config.deepspeed import leaves
from bigft.distributed.collectives import errors_shared
from bigft.engine.engine import Engine
from bigft.log import Console
from bigft.run.settings import Run
from bigft.trainer.state import State


def restore(
    engine: Engine, checkpoint: Path | None, bound: dict[str, Any], console: Console
) -> State:
    """Fill the engine from a checkpoint, if there is one, and return the counters of its run.

    What is otherwise than in that run, and may be, is said.

    Raises:
        CheckpointError: It does not fit this run.

    Collective: every rank.
    """
    if checkpoint is None:
        return State()
    with errors_shared():
        manifest = check_fits(checkpoint, bound)
    with errors_shared():
        shadow = engine.averaging.shadow if engine.averaging else None
        load_state(engine.deepspeed, checkpoint, shadow)
    for note in describe_changes(manifest, bound, dict(leaves(Run().model_dump(mode="json")))):
        console.say(note)
    return State.from_dict(manifest["state"])

"""The state that a run begins with."""

from pathlib import Path
from typing import Any

from bigft.checkpoint.bring import state_brought
from bigft.checkpoint.resume import check_fits, describe_changes
from bigft.checkpoint.resume_apart import Resumed
from bigft.checkpoint.state.load import load_state
from bigft.checkpoint.storages import Storages
from bigft.config.deepspeed import leaves
from bigft.distributed.collectives import errors_shared
from bigft.distributed.world import World
from bigft.engine.engine import Engine
from bigft.log import Console
from bigft.run.settings import Run
from bigft.trainer.state import State


def restore(
    engine: Engine,
    resumed: Resumed | None,
    bound: dict[str, Any],
    world: World,
    storages: Storages,
    folder: Path,
    console: Console,
) -> State:
    """Fill the engine from a checkpoint, if there is one, and return the counters of its run.

    What is otherwise than in that run, and may be, is said.

    Raises:
        CheckpointError: It does not fit this run.

    Collective: every rank.
    """
    if resumed is None:
        return State()
    with errors_shared():
        manifest = check_fits(resumed.folder, bound, resumed.manifest)
    shadow = engine.averaging.shadow if engine.averaging else None
    with (
        state_brought(
            engine.deepspeed, resumed, storages, world.rank, folder / "checkpoints"
        ) as beside,
        errors_shared(),
    ):
        load_state(engine.deepspeed, resumed.folder, shadow, beside)
    for note in describe_changes(manifest, bound, dict(leaves(Run().model_dump(mode="json")))):
        console.say(note)
    return State.from_dict(manifest["state"])

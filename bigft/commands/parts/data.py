"""The data of a run, for this rank."""

from pathlib import Path
from typing import Any

from bigft.data.build import Data, build_data
from bigft.data.loading.loader import Share
from bigft.data.sources.progress import Tell, tell_nobody
from bigft.data.store.rejected import RejectedLog, ignore_rejected
from bigft.distributed.collectives import barrier
from bigft.distributed.world import World
from bigft.run.resolved import Resolved
from bigft.tasks.rows import TaskRows


def build_run_data(
    resolved: Resolved,
    tokenizer: Any,
    rows: TaskRows,
    world: World,
    folder: Path,
    *,
    goes_on: bool = False,
    tell: Tell = tell_nobody,
) -> Data:
    """Build the loaders of this rank. Collective: every rank."""
    run = resolved.run
    log = RejectedLog(folder, goes_on=goes_on) if world.is_rank_zero else ignore_rejected
    return build_data(
        run.data,
        tokenizer=tokenizer,
        share=Share(
            resolved.ds["train_micro_batch_size_per_gpu"],
            resolved.ds["gradient_accumulation_steps"],
            world.rank,
            world.size,
            inner_steps=run.trainer.reptile.inner_steps,
        ),
        local_rank=world.local_rank,
        eval_batch_size=run.evaluation.per_device_eval_batch_size,
        seed=run.trainer.seed,
        barrier=barrier,
        reject=log,
        tell=tell,
        lay_out=rows.lay_out,
    )

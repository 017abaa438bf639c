"""The checkpoints of a run, and what they are bound to."""

from pathlib import Path
from typing import Any

from bigft.checkpoint.save import save_checkpoint
from bigft.data.build import Data
from bigft.distributed.world import World
from bigft.engine.engine import Engine
from bigft.models.load import LoadedModel, count_parameters
from bigft.optim.build import OptimizerPlan
from bigft.run.resolve import Resolved
from bigft.run.settings import Run
from bigft.trainer.state import State


def bound_facts(
    resolved: Resolved, world: World, optimizer: OptimizerPlan, model: LoadedModel, data: Data
) -> dict[str, Any]:
    """What a checkpoint of this run is bound to; a resume compares it."""
    return {
        "model": resolved.run.model.name,
        "world_size": world.size,
        "zero_stage": resolved.ds["zero_optimization"]["stage"],
        "optimizer": optimizer.rule,
        "parameters": count_parameters(model.module),
        "global_batch_size": resolved.ds["train_batch_size"],
        "data": data.info["digest"],
        "seed": resolved.run.trainer.seed,
    }


class Checkpoints:
    """Saves checkpoints of this run and remembers the newest."""

    def __init__(
        self,
        run: Run,
        engine: Engine,
        model: LoadedModel,
        tokenizer: Any,
        folder: Path,
        bound: dict[str, Any],
        world: World,
    ) -> None:
        """Take what is saved, and where."""
        self._keep_last = run.checkpoint.keep_last
        self._engine = engine
        self._module: Any = model.module
        self._tokenizer = tokenizer
        self._folder = folder
        self._bound = bound
        self._world = world
        self.newest: Path | None = None

    def save(self, state: State) -> Path:
        """Write and commit a checkpoint. Collective: every rank."""
        facts = {
            **self._bound,
            "step": state.step,
            "tokens": state.tokens,
            "eval_loss": state.eval_loss,
            "state": state.to_dict(),
        }
        self.newest = save_checkpoint(
            self._engine.deepspeed,
            self._folder,
            step=state.step,
            facts=facts,
            write_assets=self._write_assets,
            keep_last=self._keep_last,
            is_rank_zero=self._world.is_rank_zero,
        )
        return self.newest

    def _write_assets(self, folder: Path) -> None:
        folder.mkdir()
        self._tokenizer.save_pretrained(folder)
        config = type(self._module.config).from_dict(self._module.config.to_dict())
        # Training runs without a key-value cache; the model that users load wants one.
        config.get_text_config().use_cache = True
        config.save_pretrained(folder)
        if getattr(self._module, "generation_config", None) is not None:
            self._module.generation_config.save_pretrained(folder)

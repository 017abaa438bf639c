"""The checkpoints of a run, and what they are bound to."""

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bigft import __version__
from bigft.checkpoint.manifest import find_candidates
from bigft.checkpoint.save import Checkpoints
from bigft.config.deepspeed import leaves
from bigft.data.build import Data
from bigft.distributed.world import World
from bigft.engine.engine import Engine
from bigft.engine.host_swap import HostSwap
from bigft.errors import PlanError
from bigft.log import Console
from bigft.models.load import LoadedModel, count_parameters
from bigft.optim.build import OptimizerPlan
from bigft.redact import redact_value
from bigft.run.resolve import Resolved
from bigft.run.settings import Run
from bigft.trainer.state import State
from bigft.units import format_bytes

_LEARNS_BY = {"model", "data", "task", "optim", "trainer"}
_BOUND_OTHERWISE = (
    "trainer.seed",
    "trainer.per_device_train_batch_size",
    "trainer.gradient_accumulation_steps",
)
_PACKAGES = ("torch", "deepspeed", "transformers")


def bound_facts(
    resolved: Resolved, world: World, optimizer: OptimizerPlan, model: LoadedModel, data: Data
) -> dict[str, Any]:
    """What a checkpoint of this run is bound to; a resume compares it."""
    ds = resolved.ds
    batch = ds["train_micro_batch_size_per_gpu"], ds["gradient_accumulation_steps"]
    return {
        "model": resolved.run.model.name,
        "world_size": world.size,
        "zero_stage": ds["zero_optimization"]["stage"],
        "optimizer": optimizer.rule,
        "parameters": count_parameters(model.module),
        "global_batch_size": ds["train_batch_size"],
        "asked_batch": list(resolved.asked_batch or batch),
        "data": data.info["digest"],
        "seed": resolved.run.trainer.seed,
        "settings": _describe_settings(resolved),
        "versions": {"bigft": __version__, **{name: version(name) for name in _PACKAGES}},
    }


def _describe_settings(resolved: Resolved) -> dict[str, Any]:
    """What a run learns by: dotted path -> value, without secrets."""
    run = resolved.run.model_dump(mode="json", include=_LEARNS_BY)
    settings = dict(leaves(redact_value(run)))
    ds = {
        f"ds.{name}": value
        for name, value in leaves(redact_value(resolved.ds))
        if name == "gradient_clipping" or name.endswith("16.enabled")
    }
    return {
        name: value
        for name, value in {**settings, **ds}.items()
        if name not in _BOUND_OTHERWISE and not name.startswith("data.loading.")
    }


class RunCheckpoints:
    """Saves checkpoints of this run and remembers the newest."""

    def __init__(
        self,
        run: Run,
        engine: Engine,
        model: LoadedModel,
        tokenizer: Any,
        folder: Path,
        bound: dict[str, Any],
        resumed: Path | None,
    ) -> None:
        """Take what is saved, and where. Collective: every rank."""
        self._module: Any = model.module
        self._tokenizer = tokenizer
        self._bound = bound
        self._writer = Checkpoints(
            engine.deepspeed,
            folder,
            self._write_assets,
            keep_last=run.checkpoint.keep_last,
            timeout_seconds=run.checkpoint.timeout_seconds,
            protected=resumed,
        )
        in_background = run.checkpoint.write == "background"
        self._in_background = in_background and not engine.is_swapped
        self.newest = resumed

    def save(self, state: State, is_last: bool) -> Path | None:
        """Write and commit a checkpoint, or begin to. Collective: every rank.

        Args:
            state: Where the run is.
            is_last: Whether training ends here, so that swap files may be used up for want of room.

        Returns:
            The committed folder; None in the background.
        """
        facts = {
            **self._bound,
            "tokens": state.tokens,
            "eval_loss": state.eval_loss,
            "state": state.to_dict(),
        }
        if self._in_background:
            self.wait()
            self._writer.begin(state.step, facts)
            return None
        self.newest = self._writer.save(state.step, facts, is_last=is_last)
        return self.newest

    def wait(self) -> Path | None:
        """Wait for the save in the background, if there is one. Collective: every rank.

        Returns:
            The folder that it committed.
        """
        committed = self._writer.wait()
        self.newest = committed or self.newest
        return committed

    def _write_assets(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(folder)
        config = type(self._module.config).from_dict(self._module.config.to_dict())
        # Training runs without a key-value cache; the model that users load wants one.
        config.get_text_config().use_cache = True
        # As transformers does: other programs choose their code by it, and a model that was built
        # from a bare config.json lacks it.
        config.architectures = [type(self._module).__name__]
        config.save_pretrained(folder)
        if getattr(self._module, "generation_config", None) is not None:
            self._module.generation_config.save_pretrained(folder)


def check_space(
    run: Run,
    optimizer: OptimizerPlan,
    model: LoadedModel,
    engine: Engine,
    total_steps: int,
    folder: Path,
    console: Console,
) -> None:
    """Say how large a checkpoint will be, and refuse a run that has no room for one.

    Raises:
        PlanError: Less space is free than one checkpoint takes, and it cannot be made of the swap
            files.
    """
    # fp32 master weights and the optimizer's states; config and tokenizer are small.
    of_weight = run.optim.master_bits / 8
    size = int(count_parameters(model.module) * (of_weight + optimizer.state_bytes_per_parameter))
    free = shutil.disk_usage(folder).free
    existing = len(find_candidates(folder / "checkpoints"))
    is_one = not 0 < run.checkpoint.save_steps < total_steps
    # While the next one is written, all that are kept are there.
    needed = size * (1 if is_one else max(1, run.checkpoint.keep_last + 1 - existing))
    console.say(
        f"a checkpoint takes about {format_bytes(size)}, {run.checkpoint.keep_last} are kept;"
        f" {format_bytes(free)} free in {folder}"
    )
    advice = "free some space, name an --output_dir on a larger disk"
    if free < size and _is_beside(engine.host_swap, folder):
        if not is_one:
            raise PlanError(
                f"--output_dir {folder}: {format_bytes(free)} free beside the swap files, a"
                f" checkpoint takes about {format_bytes(size)}; {advice}, or use --save_steps 0:"
                " the last checkpoint is made of the swap files"
            )
        console.say("note: no room beside the swap files: the last checkpoint uses them up")
        return
    if free < size:
        raise PlanError(
            f"--output_dir {folder}: {format_bytes(free)} free, a checkpoint takes about"
            f" {format_bytes(size)}; {advice}, or use --optim adamw_8bit (6 bytes per parameter)"
        )
    if free < needed:
        console.say(
            f"warning: {run.checkpoint.keep_last} checkpoints and one being written will need"
            f" {format_bytes(needed)} more; {advice}, or lower --checkpoint.keep_last"
        )


def _is_beside(swap: HostSwap | None, folder: Path) -> bool:
    return swap is not None and swap.folder.stat().st_dev == folder.stat().st_dev

"""The checkpoints of a run, and what they are bound to."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bigft import __version__
from bigft.checkpoint.folder import final_place
from bigft.checkpoint.manifest import find_candidates, read_manifest, read_own_manifest
from bigft.checkpoint.resume_apart import Resumed
from bigft.checkpoint.save import Checkpoints
from bigft.checkpoint.storages import Storages
from bigft.commands.parts.model import write_assets
from bigft.config.deepspeed import leaves
from bigft.data.build import Data
from bigft.distributed.collectives import errors_shared, gather_objects
from bigft.distributed.place import HERE
from bigft.distributed.world import World
from bigft.engine.engine import Engine
from bigft.engine.host_swap import HostSwap
from bigft.errors import CheckpointError, PlanError
from bigft.evaluation.ranking import strip_prefix
from bigft.log import Console
from bigft.models.load import LoadedModel, count_parameters
from bigft.optim.build import OptimizerPlan
from bigft.redact import redact_value
from bigft.run.goals import find_best_metric
from bigft.run.resolved import Resolved
from bigft.run.settings import Run
from bigft.trainer.best import Best, pick_best
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
        "freeze": resolved.run.model.freeze,
        "global_batch_size": ds["train_batch_size"],
        "asked_batch": list(resolved.asked_batch or batch),
        "data": data.info["digest"],
        "seed": resolved.run.trainer.seed,
        "inner_steps": resolved.run.trainer.reptile.inner_steps,
        "ema": resolved.run.trainer.ema,
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


@dataclass(frozen=True)
class Kept:
    """The best checkpoint, and where it is."""

    best: Best
    folder: Path


class RunCheckpoints:
    """Saves checkpoints of this run and remembers the newest, and the best where one is asked."""

    def __init__(
        self,
        run: Run,
        engine: Engine,
        model: LoadedModel,
        tokenizer: Any,
        folder: Path,
        bound: dict[str, Any],
        resumed: Resumed | None,
        storages: Storages,
        tell: Callable[[str], None],
    ) -> None:
        """Take what is saved, and where. Collective: every rank."""
        before = resumed.folder if resumed else None
        self._module: Any = model.module
        self._tokenizer = tokenizer
        self._bound = bound
        self._writer = Checkpoints(
            engine.deepspeed,
            folder,
            self._write_assets,
            keep_last=run.checkpoint.keep_last,
            timeout_seconds=run.checkpoint.timeout_seconds,
            protected=before,
            storages=storages,
            shadow=engine.averaging.shadow if engine.averaging else None,
            tell=tell,
        )
        in_background = run.checkpoint.write == "background"
        self._in_background = in_background and not engine.is_swapped
        self.newest = before
        found = find_best_metric(run)
        self._folder = folder
        self._metric = strip_prefix(found[0]) if found else None
        self.kept = None
        if resumed and self._metric:
            with errors_shared():
                kept = read_kept(resumed, self._metric, is_part=storages.count > 1)
            # Not every storage holds something of it.
            self.kept = next((one for one in gather_objects(kept) if one is not None), None)
        self._coming: Kept | None = None

    def save(self, state: State, is_last: bool) -> Path | None:
        """Write and commit a checkpoint, or begin to. Collective: every rank.

        Args:
            state: Where the run is.
            is_last: Whether training ends here, so that swap files may be used up for want of room.

        Returns:
            The committed folder; None in the background.
        """
        HERE.note(phase="saving")
        if self._in_background:
            self.wait()  # What it commits may be the best.
        coming = self._coming = self._choose(state, final_place(self._folder, state.step))
        best = coming.folder if coming else None
        facts = {
            **self._bound,
            "tokens": state.tokens,
            "eval_loss": state.eval_loss,
            "state": state.to_dict(),
            **({"best": asdict(coming.best)} if coming else {}),
        }
        if self._in_background:
            self._writer.begin(state.step, facts, best=best)
            return None
        self.newest = self._writer.save(state.step, facts, is_last=is_last, best=best)
        self.kept = coming
        return self.newest

    def wait(self) -> Path | None:
        """Wait for the save in the background, if there is one. Collective: every rank.

        Returns:
            The folder that it committed.
        """
        committed = self._writer.wait()
        if committed is not None:
            self.newest, self.kept = committed, self._coming
        return committed

    def consider_resumed(self, state: State) -> None:
        """Take an evaluation of the checkpoint that this run resumed from, made after its save."""
        if self.newest is not None:
            self.kept = self._choose(state, self.newest)

    def _choose(self, state: State, folder: Path) -> Kept | None:
        """Say which is best once `folder` is committed, that or the one before."""
        before = self.kept
        if self._metric is None:
            return None
        best = pick_best(self._metric, before.best if before else None, state)
        if best is None or (before is not None and best == before.best):
            return before
        return Kept(best, folder)

    def _write_assets(self, folder: Path) -> None:
        write_assets(self._module, self._tokenizer, folder)


def read_kept(resumed: Resumed, metric: str, *, is_part: bool = False) -> Kept | None:
    """Find the best checkpoint that the run of a checkpoint knew.

    Args:
        resumed: That checkpoint.
        metric: By which it is the best.
        is_part: Whether other storages hold files of it.

    Returns:
        None when it kept none by this metric, or it is there no more, or another took its name.
    """
    written = resumed.manifest.get("best")
    if not isinstance(written, dict) or written.get("metric") != metric:
        return None
    try:
        best = Best(**written)
        folder = final_place(resumed.folder.parent, best.step)
        is_it = folder == resumed.folder
        read = read_own_manifest if is_part else read_manifest
        state = (resumed.manifest if is_it else read(folder))["state"]
        # Without a value of its own it was evaluated by the run that resumed from it.
        is_same = state["scored_step"] != best.step or state["scores"][metric] == best.value
    except (CheckpointError, KeyError, TypeError, ValueError):
        return None
    return Kept(best, folder) if is_same else None


def check_space(
    run: Run,
    optimizer: OptimizerPlan,
    model: LoadedModel,
    engine: Engine,
    total_steps: int,
    folder: Path,
    share: float,
    console: Console,
) -> None:
    """Say how large a checkpoint will be, and refuse a run that has no room for one.

    Args:
        run: The settings.
        optimizer: Which states it has.
        model: Which parameters.
        engine: Whether it swaps.
        total_steps: Of the run.
        folder: Of the run.
        share: Of each checkpoint that comes to lie on this host's storage.
        console: Says it.

    Raises:
        PlanError: Less space is free than one checkpoint takes, and it cannot be made of the swap
            files.
    """
    # fp32 master weights and the optimizer's states; config and tokenizer are small.
    of_weight = run.optim.master_bits / 8 + (4 if engine.averaging else 0)
    trained = count_parameters(model.module, trained=True)
    frozen = count_parameters(model.module) - trained
    # What is frozen is kept as the forward pass has it, in 4 bytes at most.
    whole = trained * (of_weight + optimizer.state_bytes_per_parameter) + 4 * frozen
    size = int(whole * share)
    free = shutil.disk_usage(folder).free
    existing = len(find_candidates(folder / "checkpoints"))
    is_one = not 0 < run.checkpoint.save_steps < total_steps
    # While the next one is written, all that are kept are there.
    kept = run.checkpoint.keep_last + (find_best_metric(run) is not None)
    needed = size * (1 if is_one else max(1, kept + 1 - existing))
    console.say(
        f"a checkpoint takes about {format_bytes(size)}{' here' if share < 1 else ''}, {kept} are"
        f" kept;"
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
            f"warning: {kept} checkpoints and one being written will need"
            f" {format_bytes(needed)} more; {advice}, or lower --checkpoint.keep_last"
        )


def _is_beside(swap: HostSwap | None, folder: Path) -> bool:
    return swap is not None and swap.folder.stat().st_dev == folder.stat().st_dev

"""The engine of a run."""

from typing import Any

import torch

from bigft.checkpoint.state.shadow import Shadow
from bigft.distributed.collectives import errors_shared
from bigft.distributed.place import HERE
from bigft.distributed.world import World
from bigft.engine.build import build_engine
from bigft.engine.engine import Averaging, Engine
from bigft.engine.host_memory import fix_malloc_limits, give_back_freed_memory
from bigft.engine.swap_verify import SwapGuard
from bigft.log import Console
from bigft.models.freeze import freeze
from bigft.models.load import LoadedModel, count_parameters
from bigft.models.noise import add_noise
from bigft.models.savers import save_activations
from bigft.optim.build import OptimizerPlan
from bigft.optim.groups import build_groups
from bigft.optim.layers import find_depths, split_by_depth
from bigft.optim.schedule import build_schedule
from bigft.run.settings import Run
from bigft.trainer.averaging import MovingAverage, Reptile
from bigft.units import format_bytes, format_count


def build_run_engine(
    run: Run,
    ds: dict[str, Any],
    model: LoadedModel,
    optimizer: OptimizerPlan,
    total_steps: int,
    world: World,
    console: Console,
    swap_guard: SwapGuard | None = None,
) -> Engine:
    """Build the engine around a loaded model. Collective: every rank."""
    HERE.note(phase="setting up the engine")
    module = model.module
    if run.model.freeze:
        with errors_shared():
            console.say(f"note: {freeze(module, run.model.freeze)}")
    note = save_activations(module, run.model.activation_checkpointing, world.device)
    for line in [*model.notes, *([note] if note else [])]:
        console.say(f"note: {line}")
    console.say(
        f"{type(module).__name__}, {format_count(count_parameters(module))} parameters, attention"
        f" {model.attention}, activation checkpointing {run.model.activation_checkpointing}"
    )
    groups = build_groups(module, run.optim.weight_decay, fp32_embeddings=run.optim.fp32_embeddings)
    if run.model.layer_decay is not None:
        with errors_shared():
            groups = _decay_layers(run.model.layer_decay, run, module, groups, console)
    engine = build_engine(
        module,
        ds=ds,
        groups=groups,
        build_optimizer=optimizer.build,
        build_scheduler=None
        if "scheduler" in ds
        else lambda inner: build_schedule(run.optim, inner, total_steps),
        expected_optimizer=optimizer.class_name,
    )
    give_back_freed_memory()
    fix_malloc_limits(count_parameters(module))
    if run.model.neftune_alpha is not None:
        # After the engine has its own hooks there: it learns of the noise like of any layer.
        console.say(f"note: {add_noise(module, run.model.neftune_alpha)}")
    engine.guard_swap(swap_guard)
    # Laid out, or known only after the first step.
    found = engine.measure_state_bytes_per_parameter() or optimizer.state_bytes_per_parameter
    console.say(
        f"optimizer {optimizer.class_name} ({optimizer.rule}), {found:.3g} bytes of state per"
        " parameter"
    )
    with errors_shared():
        engine.averaging = _build_averaging(run, engine, total_steps, console)
    return engine


def _build_averaging(
    run: Run, engine: Engine, total_steps: int, console: Console
) -> Averaging | None:
    """Keep weights beside those that are trained, where the settings ask for it, and say so."""
    decay, reptile = run.trainer.ema, run.trainer.reptile
    if not decay and not reptile.inner_steps:
        return None
    shadow = Shadow(engine.deepspeed)
    size = f"4 bytes per parameter in host memory, {format_bytes(4 * shadow.numel)} on this rank"
    if reptile.inner_steps:
        console.say(
            f"Reptile: {reptile.inner_steps} steps on each part, then {reptile.outer_rate:g}"
            f" ({reptile.outer_schedule}) of the way is kept; start weights: {size}"
        )
        return Reptile(shadow, reptile, total_steps)
    span = round(1 / (1 - decay))
    console.say(f"moving average of the weights, decay {decay:g}: {size}")
    if span > total_steps:
        console.say(
            f"warning: --trainer.ema {decay:g} averages over about {span:,} steps, and this run has"
            f" {total_steps:,}: what is exported stays near the weights of its start. Use less"
        )
    return MovingAverage(shadow, decay)


def _decay_layers(
    decay: float, run: Run, module: Any, groups: list[dict[str, Any]], console: Console
) -> list[dict[str, Any]]:
    """Give lower layers lower learning rates, and say so."""
    depths = find_depths(module)
    split = split_by_depth(groups, depths, run.optim.learning_rate, decay)
    console.say(
        f"note: --model.layer_decay {decay:g}: learning rate {split[0]['lr']:.3g} at the top, down"
        f" to {split[-1]['lr']:.3g} at the bottom, over {depths.head - 1} layers"
    )
    return split


def training_dtype(ds: dict[str, Any]) -> torch.dtype:
    """Read from the DeepSpeed JSON what the model computes in."""
    if ds.get("bf16", {}).get("enabled"):
        return torch.bfloat16
    if ds.get("fp16", {}).get("enabled"):
        return torch.float16
    return torch.float32

"""The straight line of a training run, from settings to a committed checkpoint."""

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bigft.checkpoint.consolidate import consolidate
from bigft.checkpoint.resume import check_fits, find_resume, load_checkpoint
from bigft.checkpoint.save import save_checkpoint
from bigft.data.build import Data, build_data
from bigft.data.describe import describe_data
from bigft.data.loading.loader import Share
from bigft.data.store.rejected import append_rejected, ignore_rejected, keep_rejected
from bigft.data.tokens.builtin import default_cache_dir, load_builtin_tokenizer
from bigft.data.tokens.templates import TEMPLATES
from bigft.data.tokens.tokenize import find_end_token_ids
from bigft.distributed.collectives import (
    barrier,
    broadcast_object,
    errors_shared,
    local_rank_zero_first,
)
from bigft.distributed.world import World
from bigft.engine import swap
from bigft.engine.build import build_engine, check_precision
from bigft.engine.communication import open_communication
from bigft.engine.engine import Engine
from bigft.engine.host_memory import fix_malloc_limits
from bigft.engine.operators import build_operators, check_build_tools, find_needed_operators
from bigft.engine.zero import Zero
from bigft.errors import TrainingError
from bigft.log import Console
from bigft.models.download import fetch_weights
from bigft.models.facts import ModelFacts, read_facts
from bigft.models.load import LoadedModel, count_parameters, load_model, plan_parameters
from bigft.models.savers import save_activations
from bigft.models.tokenizer import adopt_special_tokens, load_tokenizer
from bigft.monitor.meters import count_flops_per_token, find_peak_flops
from bigft.monitor.sinks import Sinks, build_sinks
from bigft.optim.build import OptimizerPlan, plan_optimizer
from bigft.optim.groups import build_groups
from bigft.optim.schedule import build_schedule
from bigft.run.record import record
from bigft.run.resolve import Resolved
from bigft.run.settings import Run
from bigft.tasks.packing import check_packing
from bigft.tasks.task import Task, build_task
from bigft.trainer.clock import count_total_steps
from bigft.trainer.evaluating import Evaluator
from bigft.trainer.hooks import Hook
from bigft.trainer.loop import fit
from bigft.trainer.reporting import Rate, Reporter
from bigft.trainer.saving import Saver
from bigft.trainer.state import State
from bigft.units import format_bytes, format_count, format_seconds, parse_bytes


def train(resolved: Resolved, folder: Path, world: World, console: Console) -> Path:
    """Train as resolved and leave a committed checkpoint of the last step.

    Returns:
        That checkpoint.

    Collective: every rank.
    """
    run = resolved.run

    # --- Check what can be checked before anything expensive starts ---
    optimizer, resumed = _check_first(resolved, folder, world, console)

    # --- Data ---
    facts = read_facts(run.model)
    task = build_task(run.task.name)
    cache = default_cache_dir(run.data.loading.cache_dir)
    # First on one rank of each host: the built-in tokenizer may have to be trained.
    with errors_shared(), local_rank_zero_first(world):
        load_builtin = partial(load_builtin_tokenizer, cache)
        tokenizer = load_tokenizer(run.model, facts, load_builtin, TEMPLATES)
    with errors_shared():
        data = _build_data(resolved, tokenizer, world, folder)
        if world.is_rank_zero:
            keep_rejected(folder, data.rejected_files)
    total_steps = count_total_steps(run.trainer, data.train.steps_per_epoch)
    _announce_data(data, total_steps, console)

    # --- Model, optimizer, engine ---
    with errors_shared(), local_rank_zero_first(world):
        facts = replace(facts, weight_files=fetch_weights(run.model, facts))
    with _swap_folder(resolved, folder, facts, tokenizer, task, world) as ds:
        zero = Zero(ds)
        with errors_shared():
            model = load_model(
                run.model,
                facts,
                zero,
                auto_class=task.auto_class(),
                tokenizer=tokenizer,
                dtype=_training_dtype(ds),
                device=world.device,
                seed=run.trainer.seed,
            )
        if not facts.has_weights:
            adopt_special_tokens(model.module, tokenizer, find_end_token_ids(tokenizer))
        engine = _build_engine(run, ds, model, optimizer, total_steps, world, console)

        if run.data.packing != "none":
            engine.set_training(False)
            with errors_shared():
                check_packing(
                    task,
                    engine,
                    num_sequences=ds["train_micro_batch_size_per_gpu"],
                    num_tokens=len(tokenizer),
                    device=world.device,
                )

        # --- Resume ---
        bound = _bound_facts(resolved, world, optimizer, model, data)
        state = State()
        if resumed is not None:
            with errors_shared():
                manifest = check_fits(resumed, bound)
            with errors_shared():
                load_checkpoint(engine.deepspeed, resumed)
            state = State.from_dict(manifest["state"])
            console.say(f"resumed from {resumed.name}, {total_steps - state.step} steps to go")

        # --- Train ---
        saver = _Checkpoints(run, engine, model, tokenizer, folder / "checkpoints", bound, world)
        # Only rank 0 opens them: what it cannot open ends all ranks.
        with errors_shared():
            opened = build_sinks(
                list(run.monitor.sinks),
                folder,
                project=run.monitor.project,
                settings=run.model_dump(),
                is_rank_zero=world.is_rank_zero,
            )
        with opened as sinks, _out_of_memory_explained(run):
            hooks = _build_hooks(
                run, engine, task, data, facts, model, sinks, saver, world, console
            )
            hooks.insert(1, _StateBytes(engine, optimizer, console))
            # What exists now stays; a full collection would walk it for 0.3 s, and the others wait.
            gc.collect()
            gc.freeze()
            fit(
                engine,
                task,
                data.train,
                state,
                hooks,
                total_steps=total_steps,
                seed=run.trainer.seed,
                device=world.device,
                max_skipped_in_a_row=run.trainer.max_skipped_in_a_row,
            )
    barrier()
    return saver.newest or _must_exist(resumed)


def export(resolved: Resolved, checkpoint: Path, model: Path, console: Console) -> None:
    """Consolidate a checkpoint into one Hugging Face folder. Rank 0 only."""
    section = resolved.run.checkpoint
    result = consolidate(
        checkpoint,
        model,
        dtype=section.export_dtype,
        max_shard_bytes=parse_bytes(section.max_shard_size),
    )
    console.say(
        f"exported and verified {format_count(result.parameters)} parameters,"
        f" {format_bytes(result.bytes)}, in {format_seconds(result.seconds)}"
    )


def _must_exist(checkpoint: Path | None) -> Path:
    assert checkpoint is not None, "a run that takes no step has resumed from a checkpoint"
    return checkpoint


# --- What is said ---


def _announce(
    resolved: Resolved, optimizer: OptimizerPlan, world: World, folder: Path, console: Console
) -> None:
    ds, run = resolved.ds, resolved.run
    zero = ds["zero_optimization"]
    offload = {
        part: zero.get(f"offload_{part}", {}).get("device", "none")
        for part in ("param", "optimizer")
    }
    console.say(f"run folder {folder}")
    console.say(
        f"{world.size} rank(s) on {world.device.type}, ZeRO stage {zero['stage']}, parameters on"
        f" {_place(offload['param'], world)}, optimizer on {_place(offload['optimizer'], world)},"
        f" {_training_dtype(ds)!s}".replace("torch.", "")
    )
    console.say(
        f"{ds['train_batch_size']} sequences of up to {run.data.max_length} tokens per step ="
        f" {ds['train_micro_batch_size_per_gpu']} per rank x {ds['gradient_accumulation_steps']}"
        f" accumulated x {world.size} rank(s)"
    )
    for line in [*resolved.announced, *(f"warning: {text}" for text in resolved.warnings)]:
        console.say(line)
    if optimizer.note:
        console.say(f"note: {optimizer.note}")


def _place(device: str, world: World) -> str:
    return {"none": world.device.type, "cpu": "host memory", "nvme": "NVMe"}.get(device, device)


def _announce_data(data: Data, total_steps: int, console: Console) -> None:
    for line in describe_data(data.info, data.train.steps_per_epoch):
        console.say(line)
    console.say(f"{total_steps:,} steps in this run")


# --- Parts ---


def _check_first(
    resolved: Resolved, folder: Path, world: World, console: Console
) -> tuple[OptimizerPlan, Path | None]:
    """Check the host and the run folder, say what will run, build DeepSpeed's operators."""
    run = resolved.run
    with errors_shared():
        resumed = find_resume(run.checkpoint.resume, folder / "checkpoints")
        optimizer = plan_optimizer(run.optim, resolved.ds)
        check_precision(resolved.ds)
        operators = find_needed_operators(
            resolved.ds,
            on_cpu=world.device.type == "cpu",
            uses_cpu_adam=optimizer.class_name == "DeepSpeedCPUAdam",
        )
        check_build_tools(operators)
        if world.is_rank_zero:
            record(resolved, os.environ, folder)
    _announce(resolved, optimizer, world, folder, console)
    with local_rank_zero_first(world):
        build_operators(operators)
    open_communication(world.device)
    return optimizer, resumed


def _training_dtype(ds: dict[str, Any]) -> torch.dtype:
    if ds.get("bf16", {}).get("enabled"):
        return torch.bfloat16
    if ds.get("fp16", {}).get("enabled"):
        return torch.float16
    return torch.float32


def _build_data(resolved: Resolved, tokenizer: Any, world: World, folder: Path) -> Data:
    run = resolved.run
    return build_data(
        run.data,
        tokenizer=tokenizer,
        share=Share(
            resolved.ds["train_micro_batch_size_per_gpu"],
            resolved.ds["gradient_accumulation_steps"],
            world.rank,
            world.size,
        ),
        local_rank=world.local_rank,
        eval_batch_size=run.evaluation.per_device_eval_batch_size,
        seed=run.trainer.seed,
        barrier=barrier,
        reject=partial(append_rejected, folder) if world.is_rank_zero else ignore_rejected,
    )


@contextlib.contextmanager
def _swap_folder(
    resolved: Resolved, folder: Path, facts: ModelFacts, tokenizer: Any, task: Task, world: World
) -> Iterator[dict[str, Any]]:
    """Give the JSON its private NVMe folder, and remove it at the end."""
    if not swap.find_swap_roots(resolved.ds):
        yield resolved.ds
        return
    private = swap.with_private_swap(resolved.ds, broadcast_object(swap.new_run_name()))
    first_here = world.local_rank == 0
    try:
        with errors_shared():
            if first_here:
                _open_swap(resolved, private, facts, tokenizer, task, world)
        yield private
    finally:
        if first_here:
            swap.close_swap(private)
            with contextlib.suppress(OSError):
                # nvme_path "auto" made a folder of its own in the run folder; it is empty now.
                (folder / "nvme").rmdir()


def _open_swap(
    resolved: Resolved,
    private: dict[str, Any],
    facts: ModelFacts,
    tokenizer: Any,
    task: Task,
    world: World,
) -> None:
    swap.remove_orphans(resolved.ds)
    count = plan_parameters(resolved.run.model, facts, task.auto_class(), len(tokenizer))
    needed = swap.plan_swap_bytes(resolved.ds, count, world.local_size / world.size)
    swap.open_swap(private, needed, count)
    swap.sign_swap(private)


def _build_engine(
    run: Run,
    ds: dict[str, Any],
    model: LoadedModel,
    optimizer: OptimizerPlan,
    total_steps: int,
    world: World,
    console: Console,
) -> Engine:
    module = model.module
    note = save_activations(module, run.model.activation_checkpointing, world.device)
    for line in [*model.notes, *([note] if note else [])]:
        console.say(f"note: {line}")
    console.say(
        f"{type(module).__name__}, {format_count(count_parameters(module))} parameters, attention"
        f" {model.attention}, activation checkpointing {run.model.activation_checkpointing}"
    )
    fix_malloc_limits(count_parameters(module))
    engine = build_engine(
        module,
        ds=ds,
        groups=build_groups(module, run.optim.weight_decay),
        build_optimizer=optimizer.build,
        build_scheduler=None
        if "scheduler" in ds
        else lambda inner: build_schedule(run.optim, inner, total_steps),
        expected_optimizer=optimizer.class_name,
    )
    console.say(
        f"optimizer {optimizer.class_name},"
        f" {optimizer.state_bytes_per_parameter:g} bytes of state per parameter"
    )
    return engine


def _bound_facts(
    resolved: Resolved, world: World, optimizer: OptimizerPlan, model: LoadedModel, data: Data
) -> dict[str, Any]:
    """What a checkpoint of this run is bound to; a resume compares it."""
    return {
        "model": resolved.run.model.name,
        "world_size": world.size,
        "zero_stage": resolved.ds["zero_optimization"]["stage"],
        "optimizer": optimizer.class_name,
        "parameters": count_parameters(model.module),
        "global_batch_size": resolved.ds["train_batch_size"],
        "data": data.info["digest"],
        "seed": resolved.run.trainer.seed,
    }


class _Checkpoints:
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
        self._keep_last = run.checkpoint.keep_last
        self._engine = engine
        self._module: Any = model.module
        self._tokenizer = tokenizer
        self._folder = folder
        self._bound = bound
        self._world = world
        self.newest: Path | None = None

    def save(self, state: State) -> Path:
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


class _StateBytes:
    """A hook that measures the optimizer's states once they exist, after the first step."""

    def __init__(self, engine: Engine, plan: OptimizerPlan, console: Console) -> None:
        self._engine = engine
        self._plan = plan
        self._console = console
        self._measured = False

    def started(self, state: State, total_steps: int) -> None:
        """Do nothing: states are created by the first step."""

    def stepped(self, state: State, report: Any) -> None:
        if self._measured or report.result.skipped:
            return
        self._measured = True
        found = self._engine.measure_state_bytes_per_parameter()
        planned = self._plan.state_bytes_per_parameter
        if planned and abs(found - planned) > 0.1 * planned:
            self._console.say(
                f"warning: the optimizer keeps {found:.2f} bytes of state per parameter,"
                f" {planned:g} were expected"
            )

    def finished(self, state: State) -> None:
        """Do nothing."""


def _build_hooks(
    run: Run,
    engine: Engine,
    task: Task,
    data: Data,
    facts: ModelFacts,
    model: LoadedModel,
    sinks: Sinks,
    checkpoints: _Checkpoints,
    world: World,
    console: Console,
) -> list[Hook]:
    mean_length = data.info["tokens"] // max(data.info["rows"], 1)
    weights = count_parameters(model.module)
    if not facts.tied:
        # Looking a row up is no matrix product; a tied table is one, as the head.
        weights -= (facts.vocab_size or 0) * (facts.hidden_size or 0)
    flops = count_flops_per_token(
        weights, facts.num_layers or 0, facts.hidden_size or 0, mean_length
    )
    peak = find_peak_flops(world.device)
    rate = Rate(flops, peak * world.size if peak else None)
    hooks: list[Hook] = [
        Reporter(
            sinks,
            logging_steps=run.monitor.logging_steps,
            device=world.device,
            local_size=world.local_size,
            rate=rate,
            stream=console.err if world.is_rank_zero else None,
            sources=data.sources,
        )
    ]
    if data.evaluation is not None:
        hooks.append(
            Evaluator(
                run.evaluation,
                engine,
                task,
                data.evaluation,
                sinks,
                console,
                world.device,
                data.eval_sources,
            )
        )
    hooks.append(Saver(checkpoints.save, run.checkpoint.save_steps))
    return hooks


@contextlib.contextmanager
def _out_of_memory_explained(run: Run) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"device memory is exhausted ({str(error).splitlines()[0]}). In this order: lower"
            f" --per_device_train_batch_size ({run.trainer.per_device_train_batch_size}) and raise"
            " --gradient_accumulation_steps; --activation_checkpointing full; a shorter"
            f" --max_length ({run.data.max_length}); --config ds_configs/zero3_offload.json"
        ) from error

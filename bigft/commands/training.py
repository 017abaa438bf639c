"""The straight line of a training run, from settings to a committed checkpoint."""

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigft.checkpoint.bring import weights_brought
from bigft.checkpoint.consolidate import consolidate
from bigft.checkpoint.manifest import find_newest
from bigft.checkpoint.resume_apart import Finder
from bigft.checkpoint.source import Source
from bigft.checkpoint.storages import Storages, one_storage
from bigft.commands.parts.announce import announce_data
from bigft.commands.parts.checkpoints import RunCheckpoints, bound_facts, check_space
from bigft.commands.parts.checks import check_first
from bigft.commands.parts.data import build_run_data
from bigft.commands.parts.engine import build_run_engine, training_dtype
from bigft.commands.parts.frozen import FrozenModels
from bigft.commands.parts.guards import Guards
from bigft.commands.parts.hooks import StateBytes, build_hooks
from bigft.commands.parts.model import load_run_model
from bigft.commands.parts.plan import PlanRecord
from bigft.commands.parts.questions import choose_questions
from bigft.commands.parts.resume import restore
from bigft.commands.parts.swap import reserve_swap, swap_folder
from bigft.commands.parts.task import load_rows
from bigft.data.store.rejected import keep_rejected
from bigft.distributed.collectives import (
    barrier,
    errors_shared,
    local_rank_zero_first,
)
from bigft.distributed.place import HERE
from bigft.distributed.world import World
from bigft.engine.engine import Engine
from bigft.engine.host_memory import give_back_at_once
from bigft.engine.zero import Zero
from bigft.log import Console
from bigft.models.download import fetch_weights
from bigft.models.facts import read_facts
from bigft.monitor.events import Events
from bigft.monitor.sinks import build_sinks
from bigft.redact import redact_value
from bigft.run.record import record
from bigft.run.resolved import Resolved
from bigft.tasks.packing import check_packing
from bigft.tasks.task import Task, build_task
from bigft.trainer.clock import count_total_steps
from bigft.trainer.loop import fit
from bigft.trainer.rendezvous import Rendezvous
from bigft.units import format_bytes, format_count, format_seconds, parse_bytes


def train(
    resolved: Resolved,
    folder: Path,
    world: World,
    console: Console,
    guards: Guards | None = None,
    storages: Storages | None = None,
) -> Path:
    """Train as resolved and leave a committed checkpoint of the last step.

    Args:
        resolved: What to do.
        folder: Of the run; it exists.
        world: The ranks.
        console: Says how it goes.
        guards: Against stops and other ranks' ends.
        storages: Which ranks share the folder's storage; all of them by default.

    Returns:
        The checkpoint to export: that one, or the best where the run keeps it.

    Collective: every rank.
    """
    run, guards = resolved.run, guards or Guards()
    storages = storages or one_storage(world.size)

    # --- Check what can be checked before anything expensive starts ---
    resolved, optimizer, resumed, plan = check_first(resolved, folder, world, storages, console)

    # --- Data ---
    HERE.note(phase="preparing the data")
    facts = read_facts(run.model)
    # First on one rank of each host: the built-in tokenizer may have to be trained.
    with errors_shared(), local_rank_zero_first(world):
        rows, tokenizer = load_rows(run.task, run.model, run.data, facts)
    task = build_task(run.task, rows)
    with errors_shared():
        data = build_run_data(
            resolved,
            tokenizer,
            rows,
            world,
            folder,
            goes_on=resumed is not None,
            tell=console.say,
        )
        # A stream adds its rows while it is read.
        if world.is_rank_zero and not run.data.loading.streaming:
            keep_rejected(folder, data.rejected_files)
    total_steps = count_total_steps(run.trainer, data.train.steps_per_epoch)
    announce_data(data, total_steps, console)
    questions = choose_questions(run, data, rows, tokenizer, facts, world, console)

    # --- Model, optimizer, engine ---
    with errors_shared(), local_rank_zero_first(world):
        facts = replace(facts, weight_files=fetch_weights(run.model, facts))
    with swap_folder(
        resolved, optimizer, folder, facts, tokenizer, task, world, guards.before_leaving
    ) as (ds, swap_guard):
        give_back_at_once()
        # A teacher first: one that is only asked for what is stored has gone when the model comes.
        task.prepare(
            FrozenModels(
                "--task.distillation.teacher",
                run,
                ds,
                task,
                tokenizer,
                training_dtype(ds),
                data.rows,
                world,
                console,
            )
        )
        zero = Zero(ds)
        with errors_shared():
            model = load_run_model(run, task, facts, zero, tokenizer, training_dtype(ds), world)
        engine = build_run_engine(
            run, ds, model, optimizer, total_steps, world, console, swap_guard
        )

        if run.data.packing != "none":
            _try_packing(task, engine, ds, len(tokenizer), world)

        # --- Resume ---
        bound = bound_facts(resolved, world, optimizer, model, data)
        state = restore(engine, resumed, bound, world, storages, folder, console)
        if resumed is not None:
            with errors_shared():
                if storages.leads(world.rank):
                    record(resolved, os.environ, folder)
            left = max(0, total_steps - state.step)
            console.say(f"resumed from {resumed.folder.name}, {left} steps to go")

        # --- Train ---
        reserve_swap(engine, optimizer)
        with errors_shared():
            check_space(
                run,
                optimizer,
                model,
                engine,
                total_steps,
                folder,
                storages.share_of(world.rank),
                console,
            )
        saver = RunCheckpoints(
            run,
            engine,
            model,
            tokenizer,
            folder / "checkpoints",
            bound,
            resumed,
            storages,
            console.say,
        )
        # Only rank 0 opens them: what it cannot open ends all ranks.
        with errors_shared():
            opened = build_sinks(
                list(run.monitor.sinks),
                folder,
                project=run.monitor.project,
                settings=redact_value(run.model_dump()),
                is_rank_zero=world.is_rank_zero,
                tell=console.say,
            )
        rendezvous = Rendezvous(guards.signals, world.device)
        with opened as sinks, guards.signals.awaited():
            hooks = build_hooks(
                run,
                engine,
                task,
                data,
                facts,
                model,
                sinks=sinks,
                checkpoints=saver,
                events=Events(folder / "log" / "events.jsonl" if world.is_rank_zero else None),
                rendezvous=rendezvous,
                world=world,
                console=console,
                tokenizer=tokenizer,
                questions=questions,
                states=StateBytes(engine, optimizer, console),
                plan=PlanRecord(plan, world, folder, console),
            )
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
                rendezvous=rendezvous,
            )
    barrier()
    if saver.kept is not None:
        console.say(f"the best checkpoint is exported: {saver.kept.best}")
        return saver.kept.folder
    return _must_exist(saver.newest)


def _try_packing(
    task: Task, engine: Engine, ds: dict[str, Any], num_tokens: int, world: World
) -> None:
    engine.set_training(False)
    with errors_shared():
        check_packing(
            task,
            engine,
            num_sequences=ds["train_micro_batch_size_per_gpu"],
            num_tokens=num_tokens,
            device=world.device,
        )


@contextlib.contextmanager
def source_at_rank_zero(
    checkpoint: Path, world: World, storages: Storages
) -> Iterator[Path | Source]:
    """Have everything at rank 0's host that `export` reads of a checkpoint.

    Collective: every rank, up to the beginning of the block.
    """
    if storages.count == 1:
        yield checkpoint
        return
    found = Finder(world.rank, storages).find_finished(checkpoint)
    with weights_brought(found, storages, world.rank, checkpoint.parent) as source:
        yield source


def export(resolved: Resolved, checkpoint: Path | Source, model: Path, console: Console) -> None:
    """Consolidate a checkpoint into one Hugging Face folder. Rank 0 only."""
    section = resolved.run.checkpoint
    is_known = isinstance(checkpoint, Source) or checkpoint == find_newest(checkpoint.parent)
    result = consolidate(
        checkpoint,
        model,
        dtype=section.export_dtype,
        max_shard_bytes=parse_bytes(section.max_shard_size),
        # This run wrote and hashed it a moment ago, or has verified it to resume from it; the best
        # one may be of the run before.
        is_source_verified=is_known,
    )
    console.say(
        f"exported and verified {format_count(result.parameters)} parameters,"
        f" {format_bytes(result.bytes)}, in {format_seconds(result.seconds)}"
    )


def _must_exist(checkpoint: Path | None) -> Path:
    assert checkpoint is not None, "a run that takes no step has resumed from a checkpoint"
    return checkpoint

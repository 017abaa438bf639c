"""What ranks do in integration tests; called by name through `RankPool.run`."""

import os
from pathlib import Path
from typing import Any

import torch


def _resolve(settings: dict[str, Any], folder: str, config: str) -> Any:
    from bigft.config.request import Request
    from bigft.run.resolve import resolve, with_output_dir

    flags = {name: str(value) for name, value in settings.items()}
    recipe = flags.pop("recipe", "")
    request = Request("train", settings=flags, config=config, recipe=recipe)
    return with_output_dir(resolve(request, os.environ), folder)


def _world() -> Any:
    from bigft.distributed import world as w

    if torch.distributed.is_initialized():
        rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return w.World(rank, size, rank, size, torch.device("cpu"))
    return w.open_world()


def train(settings: dict[str, Any], folder: str, config: str) -> dict[str, Any]:
    """One whole run inside the open process group, export included; returns what tests ask."""
    import io

    from bigft.log import Console

    resolved = _resolve(settings, folder, config)
    world = _world()
    Path(folder).mkdir(parents=True, exist_ok=True)
    err = io.StringIO()
    console = Console(io.StringIO(), err, is_rank_zero=world.is_rank_zero)
    from bigft.commands.training import export
    from bigft.commands.training import train as train_parts

    checkpoint = train_parts(resolved, Path(folder), world, console)
    if world.is_rank_zero:
        export(resolved, checkpoint, Path(folder) / "model", console)
    torch.distributed.barrier()
    return {"checkpoint": str(checkpoint), "said": err.getvalue()}


def train_counting_models(settings: dict[str, Any], folder: str, config: str) -> dict[str, Any]:
    """A whole run; also counts the language models that are there before its own is loaded."""
    import gc

    from bigft.commands.parts import model as parts

    load, found = parts.load_model, {}

    def count(*args: Any, **options: Any) -> Any:
        names = [type(o).__name__ for o in gc.get_objects() if isinstance(o, torch.nn.Module)]
        found["models"] = sum(name.endswith("ForCausalLM") for name in names)
        return load(*args, **options)

    gc.collect()  # Of earlier runs in this process.
    parts.load_model = count
    try:
        return {**train(settings, folder, config), **found}
    finally:
        parts.load_model = load


def train_interrupted(settings: dict[str, Any], folder: str, config: str, rows: int) -> tuple:
    """A run whose teacher is asked about so many rows at least, and no further."""
    from bigft.errors import TrainingError
    from bigft.tasks.stored import AnswerWriter

    advance = AnswerWriter.advance

    def stop(writer: Any, done: int) -> None:
        advance(writer, done)
        if done >= rows:
            writer._note()
            raise TrainingError(f"interrupted at {done}")

    AnswerWriter.advance = stop
    try:
        return try_train(settings, folder, config)
    finally:
        AnswerWriter.advance = advance


def try_train(settings: dict[str, Any], folder: str, config: str) -> tuple[str, str, int]:
    """A run that must fail: class, text and exit code of its error."""
    from bigft.errors import BigftError

    try:
        train(settings, folder, config)
    except BigftError as error:
        return type(error).__name__, str(error), error.exit_code
    raise AssertionError("the run went through")


def load_run_model(resolved: Any, world: Any, zero: Any, tokenizer: Any) -> Any:
    """Load the model of a run as training does."""
    from functools import partial

    from bigft.commands.parts.engine import training_dtype
    from bigft.models.facts import read_facts
    from bigft.models.load import load_model
    from bigft.tasks.rows import build_rows
    from bigft.tasks.task import build_task

    run = resolved.run
    facts = read_facts(run.model)
    task = build_task(run.task, build_rows(run.task, run.data, facts.config))
    return load_model(
        run.model,
        facts,
        zero,
        auto_class=task.auto_class(),
        configure=partial(task.configure, tokenizer=tokenizer),
        has_new_head=task.has_new_head,
        tokenizer=tokenizer,
        dtype=training_dtype(resolved.ds),
        device=world.device,
        seed=0,
    )


def gradients(settings: dict[str, Any], folder: str, config: str, steps: int) -> Any:
    """Full fp32 gradients of one step, summed micro-batch by micro-batch through the engine."""
    import io
    from functools import partial

    from bigft.commands.parts.data import build_run_data
    from bigft.commands.parts.engine import build_run_engine
    from bigft.data.cache import default_cache_dir
    from bigft.data.order.cursor import Cursor
    from bigft.data.tokens.builtin import load_builtin_tokenizer
    from bigft.engine.communication import open_communication
    from bigft.engine.zero import Zero
    from bigft.log import Console
    from bigft.models.facts import read_facts
    from bigft.models.tokenizer import load_tokenizer
    from bigft.optim.build import plan_optimizer
    from bigft.tasks.rows import build_rows
    from bigft.tasks.task import build_task

    resolved = _resolve(settings, folder, config)
    world = _world()
    run = resolved.run
    open_communication(world.device)
    facts = read_facts(run.model)
    rows = build_rows(run.task, run.data, facts.config)
    task = build_task(run.task, rows)
    tokenizer = load_tokenizer(
        run.model,
        facts,
        partial(load_builtin_tokenizer, default_cache_dir(run.data.loading.cache_dir)),
    )
    data = build_run_data(resolved, tokenizer, rows, world, Path(folder))
    zero = Zero(resolved.ds)
    model = load_run_model(resolved, world, zero, tokenizer)
    console = Console(io.StringIO(), io.StringIO(), is_rank_zero=False)
    plan = plan_optimizer(run.optim, resolved.ds)
    with zero.building():
        engine = build_run_engine(run, resolved.ds, model, plan, steps, world, console)
    engine.set_training(True)
    step = next(data.train.steps_from(Cursor()))
    found = []
    for number, batch in enumerate(step.micro_batches):
        loss = task.loss(engine, batch)
        mean = loss.total * (world.size / step.supervised_tokens)
        engine.deepspeed.backward(mean, scale_wrt_gas=False)
        if number + 1 < len(step.micro_batches):
            engine.deepspeed.step()
    from deepspeed.utils import safe_get_full_grad

    for name, parameter in engine.module.named_parameters():
        gradient = safe_get_full_grad(parameter)
        found.append((name, gradient.float().clone() if world.is_rank_zero else None))
    torch.distributed.barrier()
    return [(n, g.numpy()) for n, g in found] if world.is_rank_zero else None


def mapped_shared_buffers() -> list[str]:
    """Lines of /proc/self/maps about DeepSpeed's all-reduce buffers, after the start of a run."""
    from bigft.engine.communication import open_communication

    open_communication(_world().device)
    maps = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in maps if "deepspeed_allreduce_buffer" in line]


class _StopAt:
    """A hook that asks for a stop, so that the run leaves after the step that follows."""

    def __init__(self, rendezvous: Any, step: int) -> None:
        self._signals = rendezvous._signals
        self._step = step

    def started(self, state: Any, total_steps: int) -> None:
        """Do nothing."""

    def stepped(self, state: Any, report: Any) -> None:
        """Ask at the step before the last."""
        if state.step == self._step:
            self._signals.request("SIGTERM")

    def finished(self, state: Any) -> None:
        """Do nothing."""


def train_until(settings: dict[str, Any], folder: str, config: str, step: int) -> tuple:
    """A run that SIGTERM stops after a step; returns its error."""
    from bigft.commands import training

    fit = training.fit

    def fit_until(*args: Any, **options: Any) -> Any:
        hooks = [_StopAt(options["rendezvous"], step - 1), *args[4]]
        return fit(*args[:4], hooks, **options)

    training.fit = fit_until
    try:
        return try_train(settings, folder, config)
    finally:
        training.fit = fit

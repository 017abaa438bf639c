"""A resolved run, and the machine that it is on, as the planner sees them."""

import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bigft.models.facts import ModelFacts
from bigft.models.overrides import read_number
from bigft.optim.build import plan_optimizer
from bigft.planner.architecture.build import build_architecture
from bigft.planner.architecture.weights import Architecture
from bigft.planner.hardware import Precision, read_machine
from bigft.planner.job import Job, Optimizer
from bigft.planner.machine import Machine
from bigft.planner.strategy import read_strategy
from bigft.run.resolved import Resolved
from bigft.run.settings import Run

_VOCABULARY_MULTIPLE = 64


def read_config(run: Run, facts: ModelFacts) -> dict[str, Any]:
    """Return the model's config with the changes that the run makes."""
    changes = {name: read_number(value) for name, value in run.model.config.items()}
    return {**facts.config, **changes}


def describe_architecture(
    run: Run, facts: ModelFacts, num_tokens: int | None = None
) -> Architecture:
    """Write down the weights of the model that a run trains.

    Args:
        run: Names the task, and changes of the model's config.
        facts: What its `config.json` says.
        num_tokens: Of the tokenizer, where it is known: embeddings grow with it.

    Raises:
        UnknownArchitectureError: The family is not written down.
    """
    config = read_config(run, facts)
    rows = facts.vocab_size or 0
    grown = None
    if num_tokens is not None and num_tokens > rows:
        grown = -(-num_tokens // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
    task = name_planned_task(run)
    return build_architecture(config, task=task, vocabulary=grown)


def name_planned_task(run: Run) -> str:
    """Name the task whose model is planned: of several, the one with the largest head."""
    parts = {part.task for part in (run.task.parts or {}).values()}
    name = next((task for task in ("causal_lm", "masked_lm", *sorted(parts)) if task in parts), "")
    return {"distillation": "causal_lm", "multitask": name}.get(run.task.name, run.task.name)


def build_job(
    run: Run,
    ds: Mapping[str, Any],
    facts: ModelFacts,
    architecture: Architecture,
    *,
    ranks: int,
    ranks_per_host: int,
    is_on_cpu: bool,
) -> Job:
    """Take what memory and time go by from the settings of a run.

    Raises:
        ConfigError: The optimizer cannot be used with this DeepSpeed JSON.
    """
    plan = plan_optimizer(run.optim, dict(ds))
    attention = run.model.attention
    if attention == "auto":
        has_flash = find_spec("flash_attn") is not None and read_strategy(ds).is_split
        attention = "flash_attention_2" if has_flash and not is_on_cpu else "sdpa"
    frozen = [re.compile(pattern) for pattern in run.model.freeze]
    return Job(
        architecture=architecture,
        strategy=read_strategy(ds),
        optimizer=Optimizer(
            plan.class_name,
            8 if plan.rule == "adamw_8bit" else 32,
            run.optim.master_bits - 16,
            run.optim.fp32_embeddings,
        ),
        ranks=ranks,
        ranks_per_host=ranks_per_host,
        is_on_cpu=is_on_cpu,
        length=run.data.max_length,
        micro_batch=run.trainer.per_device_train_batch_size,
        accumulation=run.trainer.gradient_accumulation_steps,
        checkpointing=run.model.activation_checkpointing,
        attention=attention,
        packing=run.data.packing,
        task=name_planned_task(run),
        has_weights=facts.has_weights,
        ema=run.trainer.ema > 0 or run.trainer.reptile.inner_steps > 0,
        frozen=frozenset(
            weight.name
            for weight in architecture.weights
            if any(pattern.search(weight.name) for pattern in frozen)
        ),
        saves_in_background=run.checkpoint.write == "background",
        keep_last=run.checkpoint.keep_last,
        saves_often=run.checkpoint.save_steps > 0,
    )


def plan_run(
    resolved: Resolved,
    environ: Mapping[str, str],
    machine: Machine | None = None,
    num_tokens: int | None = None,
    architecture: Architecture | None = None,
) -> tuple[Job, Machine]:
    """Describe a resolved run and this machine to the planner.

    Args:
        resolved: The run.
        environ: Of the launcher, for the ranks of this host.
        machine: Another one than this.
        num_tokens: Of the tokenizer, where it is known.
        architecture: The model, where it was read in another way.

    Raises:
        UnknownArchitectureError: The model's family is not written down.
        ConfigError: The optimizer cannot be used with this DeepSpeed JSON.
    """
    if machine is None:
        machine = read_this_machine(resolved, environ)
    job = build_job(
        resolved.run,
        resolved.ds,
        resolved.facts,
        architecture or describe_architecture(resolved.run, resolved.facts, num_tokens),
        ranks=machine.ranks,
        ranks_per_host=machine.ranks_per_host,
        is_on_cpu=machine.device == "cpu",
    )
    return job, machine


def read_this_machine(resolved: Resolved, environ: Mapping[str, str]) -> Machine:
    """Read the machine that a run is on."""
    ranks = resolved.world_size
    here = environ.get("LOCAL_SIZE") or environ.get("LOCAL_WORLD_SIZE") or str(ranks)
    local = min(int(here), ranks) if here.isdigit() else ranks
    nvme = find_swap_folder(resolved)
    return _read_machine(
        str(resolved.run.output_dir or "runs"),
        nvme,
        read_strategy(resolved.ds).precision,
        local,
        max(1, ranks // local),
    )


def find_swap_folder(resolved: Resolved) -> str | None:
    """Return where tensors are offloaded to on NVMe; None where none are."""
    zero = resolved.ds.get("zero_optimization", {})
    for part in ("offload_optimizer", "offload_param"):
        section = zero.get(part) or {}
        if section.get("device") == "nvme":
            path = section.get("nvme_path", "auto")
            return str(resolved.run.output_dir or "runs") if path == "auto" else str(path)
    return None


@cache
def _read_machine(
    output_dir: str,
    nvme_path: str | None,
    precision: Precision,
    ranks: int,
    hosts: int,
) -> Machine:
    """Read it once: what it has free changes while a run starts."""
    return read_machine(
        output_dir=Path(output_dir),
        nvme_path=None if nvme_path is None else Path(nvme_path),
        precision=precision,
        ranks=ranks,
        hosts=hosts,
    )

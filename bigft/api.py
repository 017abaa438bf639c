"""bigft from Python, for notebooks and scripts: `train`, `plan` and `consolidate`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigft.commands.plan import describe, make_plan
from bigft.commands.train import run_training
from bigft.config.request import Request
from bigft.distributed.starters import complete_environment
from bigft.run.resolve import resolve
from bigft.units import parse_bytes

if TYPE_CHECKING:
    from bigft.checkpoint.consolidate import Consolidated


def train(config: str = "auto", *, recipe: str = "", **settings: Any) -> Path:
    """Train, for notebooks and scripts; the settings are those of `bigft train`.

        bigft.train("ds_configs/zero3.json", model="Qwen/Qwen3-8B", data="mine.jsonl",
                    optim={"name": "adamw", "weight_decay": 0.1})

    Args:
        config: DeepSpeed JSON, or `auto`: the planner chooses the fastest way that fits.
        recipe: YAML with settings.
        settings: Short flags as keywords; a section takes a dictionary.

    Returns:
        The folder of the exported model.

    Raises:
        BigftError: A mistake that the user can repair.

    Collective: every rank of a launch, or one process alone.
    """
    complete_environment(os.environ)
    request = Request("train", settings=dict(_flatten(settings)), config=config, recipe=recipe)
    return run_training(resolve(request, os.environ))


def plan(config: str = "auto", *, recipe: str = "", **settings: Any) -> dict[str, Any]:
    """Say what a run will need, before anything is loaded, as `bigft plan --json` does.

        bigft.plan(model="Qwen/Qwen3-8B", gpus="4x24GB", host_memory="128GB")["fits"]

    Args:
        config: DeepSpeed JSON, or `auto`.
        recipe: YAML with settings.
        settings: Those of `train`, and the hardware: `gpus`, `host_memory`, `nvme`, `hosts`, ...

    Returns:
        Bytes, seconds, the verdict and advice by the names of `--json`.

    Raises:
        BigftError: A mistake that the user can repair.
    """
    request = Request("plan", settings=dict(_flatten(settings)), config=config, recipe=recipe)
    return describe(make_plan(request))


def consolidate(
    source: str | Path,
    output_dir: str | Path,
    dtype: str = "auto",
    *,
    model: str | None = None,
    max_shard_size: str = "5GB",
    verify: bool = False,
) -> "Consolidated":
    """Turn a run, a checkpoint or what stock DeepSpeed saved into one Hugging Face folder.

    Args:
        source: Run folder, committed checkpoint, or stock DeepSpeed checkpoint.
        output_dir: Folder to write.
        dtype: `auto`, `bfloat16`, `float16` or `float32`.
        model: Where config and tokenizer come from; the checkpoint's own by default.
        max_shard_size: Largest safetensors file.
        verify: Whether to read the finished files again and compare digests.

    Raises:
        CheckpointError: The checkpoint is missing, damaged or of an unknown layout.
        ConfigError: There is no such model, or the folder cannot be written.
        ValueError: `max_shard_size` is no size.
    """
    from bigft.checkpoint.consolidate import consolidate as run
    from bigft.models.download import fetch_assets

    return run(
        Path(source),
        Path(output_dir),
        dtype=dtype,
        max_shard_bytes=parse_bytes(max_shard_size),
        assets=fetch_assets(model) if model is not None else None,
        verify=verify,
    )


def _flatten(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    flat = []
    for name, value in settings.items():
        if isinstance(value, dict):
            flat += _flatten(value, f"{prefix}{name}.")
        elif value is not None:
            flat.append((f"{prefix}{name}", str(value)))
    return flat

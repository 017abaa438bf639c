"""The files of one DeepSpeed checkpoint, found, read and checked against each other."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigft.errors import CheckpointError, raise_together
from bigft.files.paths import find_escape
from bigft.files.torch_file import Inert, read_torch_file

_MODEL_FILE = re.compile(r"(?:zero_pp_rank_(?P<rank>\d+)_)?mp_rank_(?P<mp>\d+)_model_states\.pt")
_OPTIM_FILE = re.compile(
    r"(?:bf16_|fp16_)?zero_pp_rank_(?P<rank>\d+)_mp_rank_(?P<mp>\d+)_optim_states\.pt"
)
_AUTOEP_KEYS = ("ds_autoep_layers", "autoep_layers")


@dataclass
class Shards:
    """The files of one checkpoint, by rank, read but not yet interpreted."""

    folder: Path
    models: dict[int, dict[str, Any]] = field(default_factory=dict)
    model_paths: dict[int, Path] = field(default_factory=dict)
    optims: dict[int, dict[str, Any]] = field(default_factory=dict)
    optim_paths: dict[int, Path] = field(default_factory=dict)


def read_shards(folder: Path) -> Shards:
    """Read the structure of all files of a checkpoint folder.

    Raises:
        CheckpointError: A file is missing, damaged or left over from another checkpoint.
    """
    shards = Shards(folder)
    shards.model_paths = _find_files(folder, "*_model_states.pt", _MODEL_FILE)
    shards.optim_paths = _find_files(folder, "*_optim_states.pt", _OPTIM_FILE)
    if not shards.model_paths:
        raise CheckpointError(
            f"{folder}: no *_model_states.pt file; give a DeepSpeed checkpoint folder, or a run "
            "folder of bigft"
        )
    shards.models = {rank: read_torch_file(path) for rank, path in shards.model_paths.items()}
    for rank, path in shards.model_paths.items():
        _check_model_file(path, shards.models[rank])
    shards.optims = {rank: read_torch_file(path) for rank, path in shards.optim_paths.items()}
    for rank, path in shards.optim_paths.items():
        if not isinstance(shards.optims[rank].get("optimizer_state_dict"), dict):
            raise CheckpointError(f"{path}: holds no optimizer_state_dict; the file is damaged")
    if shards.optims:
        _check_ranks(shards)
    return shards


def _find_files(folder: Path, pattern: str, name: re.Pattern[str]) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in sorted(folder.glob(pattern)):
        match = name.fullmatch(path.name)
        if not match or int(match["mp"]):
            raise CheckpointError(
                f"{path}: expert, tensor or pipeline parallel shards cannot be consolidated here; "
                "only data parallel checkpoints (ZeRO) can"
            )
        if not path.is_file():
            raise CheckpointError(f"{path}: not a regular file; use another checkpoint")
        if place := find_escape(path, folder):
            raise CheckpointError(
                f"{path}: leads out of its folder, to {place}; copy the file there if you trust it"
            )
        rank = int(match["rank"] or 0)
        if rank in found:
            raise CheckpointError(
                f"{path}: rank {rank} has another file, {found[rank].name}; two checkpoints lie in "
                "one folder. Remove the files of the older one"
            )
        found[rank] = path
    return dict(sorted(found.items()))


def _check_model_file(path: Path, model: dict[str, Any]) -> None:
    if not isinstance(model, dict) or not isinstance(model.get("module"), dict):
        raise CheckpointError(f"{path}: holds no model state; this is not DeepSpeed's file")
    if "buffer_names" not in model:
        raise CheckpointError(f"{path}: holds no buffer_names; DeepSpeed 0.7 or newer writes them")
    if any(model.get(key) for key in _AUTOEP_KEYS):
        raise CheckpointError(f"{path}: expert parallel (AutoEP) shards cannot be consolidated")


def _check_ranks(shards: Shards) -> None:
    first = min(shards.optims)
    world_size = _world_size(shards.optims[first])
    problems = []
    if missing := sorted(set(range(world_size)) - set(shards.optims)):
        problems.append(
            f"{shards.folder}: no *_optim_states.pt file of rank "
            f"{', '.join(map(str, missing))} (written by {world_size} ranks); copy it from the "
            "host that wrote it, or use another checkpoint"
        )
    for rank, optim in shards.optims.items():
        if _world_size(optim) == world_size and rank >= world_size:
            problems.append(
                f"{shards.optim_paths[rank]}: {world_size} ranks wrote this checkpoint, so none has"
                f" the number {rank}; remove the file if another checkpoint left it there"
            )
        elif _world_size(optim) != world_size:
            problems.append(
                f"{shards.optim_paths[rank]}: written by {_world_size(optim)} ranks, rank {first}'s"
                f" file by {world_size}; two checkpoints lie in one folder. Remove the older one"
            )
    if problems:
        raise_together(CheckpointError, problems)


def _world_size(optim: dict[str, Any]) -> int:
    count = optim["optimizer_state_dict"].get("partition_count", 1)
    return int(max(count)) if isinstance(count, list | tuple) else int(count)


def find_stage(shards: Shards) -> int:
    """Find the ZeRO stage, 0 to 3, that wrote the shards."""
    if not shards.optims:
        if any(model.get("param_shapes") for model in shards.models.values()):
            raise CheckpointError(
                f"{shards.folder}: no *_optim_states.pt file, and without them the weights of this "
                "ZeRO checkpoint are not here; copy them from the hosts that wrote them"
            )
        return 0
    rank = min(shards.optims)
    state = shards.optims[rank]["optimizer_state_dict"]
    stage = state.get("zero_stage")
    if isinstance(stage, Inert):  # an enum, pickled as its class and its value
        stage = stage.args[0]
    if stage is None and "single_partition_of_fp32_groups" in state:
        # BF16_Optimizer (stage 1, bf16, fp32 accumulation) writes the layout of stage 1 unlabelled.
        stage = 1
    if stage not in (1, 2, 3):
        raise CheckpointError(f"{shards.optim_paths[rank]}: ZeRO stage {stage} is not known here")
    return int(stage)


def find_training_dtype(shards: Shards, model: dict[str, Any]) -> str:
    """Find what the model computed in: `bfloat16`, `float16` or `float32`."""
    config = model.get("ds_config")
    if isinstance(config, dict):
        for keys, dtype in ((("bf16", "bfloat16"), "bfloat16"), (("fp16",), "float16")):
            sections = [config[key] for key in keys if isinstance(config.get(key), dict)]
            if any(section.get("enabled") is True for section in sections):
                return dtype
        return "float32"
    # `ds_config` may be the path of the JSON instead of its content: ask the file names then.
    is_bf16 = any(path.name.startswith("bf16_") for path in shards.optim_paths.values())
    return "bfloat16" if is_bf16 else "float32"

"""`state/index.json`: what the ranks' files are pieces of, and the run's single numbers."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bigft.checkpoint.state.collect import find_buffers
from bigft.errors import CheckpointError

INDEX_NAME = "state/index.json"
_FORMAT = 1


@dataclass(frozen=True)
class Index:
    """What holds for all ranks."""

    world_size: int
    parameters: dict[str, dict[str, Any]]
    """Name -> `shape` and `dtype` of the forward pass."""
    buffers: dict[str, dict[str, Any]]
    shared: dict[str, str]
    """Another name of a tied parameter -> the name under which it is kept."""
    training_dtype: str
    engine: dict[str, Any] = field(default_factory=dict)
    """Counters, schedule and loss scale."""
    format: int = _FORMAT

    def to_json(self) -> str:
        """Return the file's text."""
        return json.dumps(asdict(self), indent=1) + "\n"


def build_index(module: nn.Module, world_size: int, engine_facts: dict[str, Any]) -> Index:
    """Describe a model, partitioned or not.

    Args:
        module: The model.
        world_size: Ranks that write the state.
        engine_facts: Plain values.
    """
    parameters: dict[str, dict[str, Any]] = {}
    first: dict[int, str] = {}
    shared: dict[str, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if kept := first.get(id(parameter)):
            shared[name] = kept
            continue
        first[id(parameter)] = name
        shape = getattr(parameter, "ds_shape", parameter.shape)
        parameters[name] = {"shape": list(shape), "dtype": _name(parameter.dtype)}
    buffers = {
        name: {"shape": list(buffer.shape), "dtype": _name(buffer.dtype)}
        for name, buffer in find_buffers(module).items()
    }
    trained = [p.dtype for p in module.parameters() if p.requires_grad]
    dtype = _name(trained[0]) if trained else "float32"
    return Index(world_size, parameters, buffers, shared, dtype, engine_facts)


def read_index(checkpoint: Path, beside: Path | None = None) -> Index:
    """Read the index of a checkpoint folder.

    Args:
        checkpoint: The folder.
        beside: Folder with files that the checkpoint lacks here.

    Raises:
        CheckpointError: It is missing, damaged or of a newer format.
    """
    path = checkpoint / INDEX_NAME
    if beside is not None and not path.exists():
        path = beside / INDEX_NAME
    try:
        values = json.loads(path.read_bytes())
        if values["format"] > _FORMAT:
            raise CheckpointError(
                f"{path}: format {values['format']}, this bigft reads {_FORMAT}; use a newer bigft"
            )
        return Index(**{name: values[name] for name in Index.__dataclass_fields__})
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: missing; the checkpoint was written by bigft 0.1 or is incomplete. Use"
            " another checkpoint, or the version that wrote it"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); use another checkpoint") from error


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

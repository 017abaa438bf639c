"""A finished model folder as a plain transformers model, for evaluation and generation."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from bigft.checkpoint.parts import list_parts
from bigft.errors import CheckpointError, ConfigError
from bigft.models.facts import is_local
from bigft.models.weights import check_pickles


def pick_device(name: str) -> torch.device:
    """Return the device of this name; `auto` is the accelerator if there is one.

    Raises:
        ConfigError: No such device here.
    """
    if name == "auto":
        current = (
            torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        )
        return torch.device(current.type) if current else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name}: not here ({str(error).splitlines()[0]})") from error
    return device


def check_model(folder: str) -> None:
    """Check that a folder holds a model; hub ids pass.

    Raises:
        CheckpointError: It does not; says what to give instead.
    """
    path = Path(folder)
    if is_local(folder) and not path.exists():
        raise CheckpointError(
            f"{folder}: no such folder; give the model/ folder of a finished run, or a hub id"
        )
    if path.is_dir() and not (path / "config.json").is_file():
        hint = f"; did you mean {path / 'model'}?" if (path / "model/config.json").is_file() else ""
        raise CheckpointError(f"{folder}: no config.json there{hint}")
    if path.is_dir() and (parts := list_parts(path)):
        raise CheckpointError(
            f"{folder}: holds the body that {len(parts)} tasks share, and no head; give one of"
            f" {', '.join(str(path / part) for part in parts)}"
        )
    weights = ("*.safetensors", "pytorch_model*.bin", "*.gguf")
    if path.is_dir() and not any(next(path.glob(pattern), None) for pattern in weights):
        raise CheckpointError(
            f"{folder}: a config.json but no weights; give the model/ folder of a finished run, or"
            " make one with `bigft consolidate`"
        )
    if path.is_dir():
        check_pickles(path.glob("*.bin"))


def _find_gguf(folder: Path) -> str | None:
    """Name the GGUF file of a folder that has no other weights."""
    if not folder.is_dir() or any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
        return None
    return next((path.name for path in sorted(folder.glob("*.gguf"))), None)


def load_plain(folder: str, device: torch.device, auto_class: Any = None) -> tuple[Any, Any]:
    """Load a model and its tokenizer from a folder or hub id, in their own number format.

    Args:
        folder: A path or a hub id.
        device: Where the model goes.
        auto_class: Of transformers; absent: `AutoModelForCausalLM`.

    Returns:
        Model in evaluation mode on `device`, tokenizer.

    Raises:
        CheckpointError: There is no loadable model; says what to give instead.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    # What these commands print is their result; a bar for each file is not.
    logging.disable_progress_bar()
    # Nor is its report of missing weights: they are an error here.
    logging.set_verbosity_error()
    check_model(folder)
    try:
        model, found = (auto_class or AutoModelForCausalLM).from_pretrained(
            folder, dtype="auto", output_loading_info=True, gguf_file=_find_gguf(Path(folder))
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except UnpicklingError as error:
        raise CheckpointError(
            f"{folder}: its weight files hold more than weights and were refused; nothing in them"
            " was run. Use a model in safetensors"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{folder}: cannot be loaded as a model ({first})") from error
    if missing := sorted(found["missing_keys"]):
        made_for = (model.config.architectures or ["something else"])[0]
        raise CheckpointError(
            f"{folder}: was made for something else ({made_for}): {type(model).__name__} needs"
            f" {missing[0]} and {len(missing) - 1} more weights that are not there. `bigft"
            " evaluate` finds by itself what a model was made for"
        )
    return model.to(device).eval(), tokenizer

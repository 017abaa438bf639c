"""A model folder that is to become smaller: what its files and its architecture say.

Nothing of its weights is read here; the architecture is built without storage.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bigft.errors import CheckpointError, ConfigError
from bigft.models.facts import read_facts
from bigft.models.section import ModelSection
from bigft.models.weights import Header, check_names, read_headers

_OTHER_SHARE = 0.1
"""Of the numbers in the layers: so many may lie outside of linear ones, as in norms."""


@dataclass(frozen=True)
class Source:
    """A model folder."""

    folder: Path
    config: dict[str, Any]
    """As it is in the file."""
    files: tuple[Path, ...]
    """With the weights, safetensors."""
    headers: dict[str, Header]
    skeleton: nn.Module
    """The model without storage."""
    stacks: dict[str, nn.ModuleList]
    """The lists of layers, by name: one, or those of an encoder and a decoder."""

    @property
    def linears(self) -> dict[str, nn.Linear]:
        """The linear layers in the stacks, by name: neither heads nor embeddings."""
        return {
            f"{stack}.{name}": module
            for stack, layers in self.stacks.items()
            for name, module in layers.named_modules()
            if isinstance(module, nn.Linear)
        }


def open_source(folder: Path) -> Source:
    """Read what the files of a model folder and its architecture say.

    Raises:
        ConfigError: transformers does not know the architecture, or it is quantized already.
        CheckpointError: The weights are no safetensors, damaged, or do not fit the architecture.
    """
    facts = read_facts(ModelSection(name=str(folder)))
    if "quantization_config" in facts.config:
        raise ConfigError(f"{folder}: is quantized already; give the model it was made of")
    if any(file.suffix != ".safetensors" for file in facts.weight_files):
        raise CheckpointError(
            f"{folder}: its weights are no safetensors; save it again with transformers"
        )
    skeleton = build_skeleton(folder, facts.config)
    headers = read_headers(facts.weight_files)
    check_names(skeleton, headers, str(folder))
    stacks = dict(_find_stacks(skeleton))
    return Source(folder, facts.config, facts.weight_files, headers, skeleton, stacks)


def build_skeleton(folder: Path, config: dict[str, Any]) -> nn.Module:
    """Build the model of a folder without storage.

    Raises:
        ConfigError: transformers does not know it.
    """
    import transformers

    name = (config.get("architectures") or ["none named"])[0]
    model_class = getattr(transformers, name, None)
    if model_class is None:
        raise ConfigError(
            f"{folder}: unsupported architecture: transformers has no {name} (`architectures` in"
            " config.json); models with code of their own cannot be compressed"
        )
    with torch.device("meta"):
        skeleton: nn.Module = model_class(transformers.AutoConfig.from_pretrained(folder))
    return skeleton


def _find_stacks(skeleton: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Find the outermost lists of modules with linear layers in them."""
    found: list[str] = []
    for name, module in skeleton.named_modules():
        is_inside = any(name.startswith(f"{stack}.") for stack in found)
        has_linear = any(isinstance(part, nn.Linear) for part in module.modules())
        if isinstance(module, nn.ModuleList) and has_linear and not is_inside:
            found.append(name)
            yield name, module


def find_unfit(source: Source, what: str, *, needs_files: bool = True) -> list[str]:
    """List why the linear layers of a model cannot be made smaller.

    Args:
        source: The model.
        what: The flag, for the messages.
        needs_files: Whether the files must have the layers under the names of the model.
    """
    linears = source.linears
    inside = sum(p.numel() for layers in source.stacks.values() for p in layers.parameters())
    linear = sum(layer.weight.numel() for layer in linears.values())
    name = type(source.skeleton).__name__
    if not linears or linear < (1 - _OTHER_SHARE) * inside:
        share = 100 * (1 - linear / inside) if inside else 100
        return [
            f"{what}: unsupported architecture {name}: {share:.0f}% of its layers' weights are not"
            " in linear layers (experts in one tensor, convolutions)"
        ]
    missing = [name for name in linears if f"{name}.weight" not in source.headers]
    if needs_files and missing:
        return [
            f"{what}: unsupported architecture {name}: its files do not have {missing[0]}.weight"
            " under that name; load and save it with transformers first"
        ]
    return []


def find_no_decoder(source: Source, what: str) -> list[str]:
    """List why a model is not one stack of layers that predicts the next token."""
    if len(source.stacks) == 1 and type(source.skeleton).__name__.endswith("ForCausalLM"):
        return []
    return [
        f"{what}: unsupported architecture {type(source.skeleton).__name__}: only models that"
        " predict the next token with one stack of layers; --prune magnitude:SHARE takes others"
    ]

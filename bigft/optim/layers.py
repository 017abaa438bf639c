"""Learning rates that fall from layer to layer, from the head down to the embeddings.

What a pretrained model's lower layers know is more general, and should change less (Howard and
Ruder 2018, arXiv 1801.06146; Clark et al. 2020, ELECTRA, arXiv 2003.10555).
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from bigft.errors import ConfigError


@dataclass(frozen=True)
class Depths:
    """How far up each parameter is."""

    of: dict[int, int]
    """`id` of a parameter -> 0 for embeddings, 1 for the lowest layer, ... `head` above all."""
    head: int

    def find_factor(self, parameter: nn.Parameter, decay: float) -> float:
        """Return what the learning rate of a parameter is multiplied by: 1 for the head."""
        return float(decay ** (self.head - self.of[id(parameter)]))


def find_depths(module: nn.Module) -> Depths:
    """Tell embeddings, layers and head apart by the structure of a model.

    Layers are the outermost `ModuleList`s, one after the other: a decoder's come after its
    encoder's. What stands between them belongs to the layer before it; what stands after the last,
    and the output embeddings unless they are tied, to the head.

    Raises:
        ConfigError: There are no layers.
    """
    layers = _number_layers(module)
    if not layers:
        raise ConfigError(
            f"--model.layer_decay: {type(module).__name__} has no list of layers to tell apart."
            " Leave it out"
        )
    top = max(layers.values())
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    output = getattr(module, "get_output_embeddings", lambda: None)()
    latest, found = 0, {}
    for name, parameter in module.named_parameters():
        layer = next((layers[path] for path in _list_parents(name) if path in layers), None)
        if layer is not None:
            latest = depth = layer
        elif id(parameter) in tables:
            depth = 0
        elif latest == top or parameter is getattr(output, "weight", None):
            depth = top + 1
        else:
            depth = latest
        found[id(parameter)] = depth
    return Depths(found, top + 1)


def split_by_depth(
    groups: list[dict[str, Any]], depths: Depths, learning_rate: float, decay: float
) -> list[dict[str, Any]]:
    """Cut parameter groups so that each has one learning rate, the head's first.

    Schedules multiply each group's own `lr`, so the ratios stay.

    Args:
        groups: As `build_groups` makes them.
        depths: Of the model.
        learning_rate: Of the head, at its peak.
        decay: Factor from one layer to the next one below.
    """
    found = []
    for depth in range(depths.head, -1, -1):
        for group in groups:
            mine = [p for p in group["params"] if depths.of[id(p)] == depth]
            if mine:
                factor = depths.find_factor(mine[0], decay)
                found.append({**group, "params": mine, "lr": learning_rate * factor})
    return found


def _number_layers(module: nn.Module) -> dict[str, int]:
    """Return the path of every layer and its number, from 1."""
    numbers: dict[str, int] = {}
    for path, child in module.named_modules():
        is_inside = any(parent in numbers for parent in _list_parents(path))
        if isinstance(child, nn.ModuleList) and not is_inside:
            for name, layer in child.named_children():
                if any(True for _ in layer.parameters()):
                    numbers[f"{path}.{name}" if path else name] = len(numbers) + 1
    return numbers


def _list_parents(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]

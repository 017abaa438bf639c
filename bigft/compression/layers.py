"""Leave out the layers that change their input least.

How much a run of layers changes is the angle between what goes in and what comes out, averaged over
the tokens of some text (Gromov et al., arXiv 2403.17887, who take the last token of each sequence):

    d(i, n) = mean over tokens of  arccos(cos(x_i, x_i+n)) / pi

where x_i is the input of layer i. Of all runs of n neighbours the one with the smallest d goes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from bigft.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
# These count from one end of the stack; with layers gone they would point to others.
_PLACES = ("first_k_dense_replace", "num_kv_shared_layers", "moe_layer_start_index")


def measure_changes(
    decoder: Any, blocks: Sequence[nn.Module], rows: Tensor, count: int
) -> list[float]:
    """Measure how much each run of `count` neighbouring layers changes its input.

    Args:
        decoder: The transformers model without its head.
        blocks: Its layers.
        rows: Token ids of whole sequences, `(sequences, length)`.
        count: Layers in a run.

    Returns:
        For each first layer of a run the mean angle as a share of a half turn, from 0 to 1.

    Memory: what goes into every layer, for one sequence.
    """
    import torch
    from torch.nn.functional import cosine_similarity

    seen: list[Tensor] = []

    def keep(value: Any) -> None:
        seen.append((value[0] if isinstance(value, tuple) else value).float())

    handles = [
        block.register_forward_pre_hook(
            lambda _, args, kwargs: keep(args or kwargs["hidden_states"]), with_kwargs=True
        )
        for block in blocks
    ]
    handles.append(blocks[-1].register_forward_hook(lambda _, args, output: keep(output)))
    sums = torch.zeros(len(blocks) - count + 1, dtype=torch.float64)
    with torch.no_grad():
        for row in rows:
            seen.clear()
            decoder(input_ids=row[None], use_cache=False)
            for first in range(len(sums)):
                cosines = cosine_similarity(seen[first], seen[first + count], dim=-1)
                sums[first] += cosines.clamp(-1, 1).arccos().mean().item()
    for handle in handles:
        handle.remove()
    return list((sums / len(rows) / torch.pi).tolist())


def rename(name: str, stack: str, dropped: Collection[int]) -> str | None:
    """Give a weight the name it has once layers are gone; None if it is in one of those.

    Args:
        name: Of the weight, as `model.layers.5.mlp.up_proj.weight`.
        stack: Name of the list of layers, as `model.layers`.
        dropped: Numbers of the layers that go.
    """
    match = re.match(rf"{re.escape(stack)}\.(\d+)\.", name)
    if match is None:
        return name
    number = int(match[1])
    if number in dropped:
        return None
    new = number - sum(one < number for one in dropped)
    return f"{stack}.{new}.{name[match.end() :]}"


def cut_config(
    config: dict[str, Any], known: dict[str, Any], dropped: Collection[int]
) -> dict[str, Any]:
    """Take layers out of a configuration: their count, and every list with one entry per layer.

    Args:
        config: As it is in the file.
        known: What transformers makes of the text model's part, with the lists that the file may
            leave to a rule that counts layers.
        dropped: Numbers of the layers that go.

    Raises:
        ConfigError: It says something about layers by their numbers.
    """
    depth = known["num_hidden_layers"]
    changes: dict[str, Any] = {}
    for key, value in known.items():
        if key in _PLACES and value:
            raise ConfigError(f"{key}={value} in config.json tells layers apart by their place")
        if not isinstance(value, list) or not value or not re.search("layer|block", key):
            continue
        if len(value) != depth:
            raise ConfigError(f"{key} in config.json tells layers apart in a way that is not known")
        changes[key] = [entry for number, entry in enumerate(value) if number not in dropped]
    is_nested = not any(name in config for name in _COUNTS) and "text_config" in config
    part = config["text_config"] if is_nested else config
    name = next((name for name in _COUNTS if name in part), _COUNTS[0])
    part = {**part, **changes, name: depth - len(dropped)}
    return {**config, "text_config": part} if is_nested else part

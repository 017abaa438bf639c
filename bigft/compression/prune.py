"""Set the least important weights of linear layers to zero.

Weights are compared within each row of a layer's matrix, that is among the inputs of one output,
as Sun et al. (arXiv 2306.11695) found best. What a weight is worth is its size, or its size times
the norm of its input over some text (Wanda, same paper).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bigft.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

Measure = Literal["magnitude", "wanda"]

_MEASURES: dict[str, Measure] = {"magnitude": "magnitude", "wanda": "wanda"}


@dataclass(frozen=True)
class Pruning:
    """How many weights become zero, and which."""

    measure: Measure
    share: float | None
    """Of each row; None: two of every four weights that follow each other."""


def read_pruning(text: str) -> Pruning:
    """Read `magnitude:0.5`, `wanda:0.5` or `wanda:2:4`.

    Raises:
        ConfigError: It is none of these.
    """
    name, _, amount = text.partition(":")
    if name not in _MEASURES:
        raise ConfigError(
            f"--prune {text}: unknown method {name!r}; give magnitude:SHARE or wanda:SHARE"
        )
    if amount == "2:4":
        return Pruning(_MEASURES[name], None)
    try:
        share = float(amount)
    except ValueError:
        raise ConfigError(
            f"--prune {text}: give a share of the weights, as {name}:0.5, or {name}:2:4"
        ) from None
    if not 0 < share < 1:
        raise ConfigError(f"--prune {text}: the share must lie between 0 and 1, as in {name}:0.5")
    return Pruning(_MEASURES[name], share)


def prune_(weight: Tensor, share: float | None, norms: Tensor | None = None) -> None:
    """Set the weights of a layer that are worth least to zero, in place.

    Of equal ones the first go. With a share, each row loses `floor(share * inputs)` weights.

    Args:
        weight: Of shape (outputs, inputs).
        share: Of each row; None: two of every four neighbours in a row.
        norms: Euclidean norm of each input over the calibration text, of shape (inputs,); absent:
            all alike.

    Memory: four times the matrix in fp32.
    """
    worth = weight.detach().float().abs()
    if norms is not None:
        worth *= norms.to(worth.device)
    groups = worth.unflatten(1, (-1, 4)) if share is None else worth
    count = 2 if share is None else int(share * weight.shape[1])
    if not count:
        return
    # Not by sorting: this takes a third less time on rows of 4,096.
    last = groups.kthvalue(count, dim=-1, keepdim=True).values
    below, equal = groups < last, groups == last
    is_least = below | (equal & (equal.cumsum(-1) <= count - below.sum(-1, keepdim=True)))
    weight.detach().masked_fill_(is_least.reshape(weight.shape), 0)


def prune_by_inputs(
    decoder: Any, blocks: Sequence[nn.Module], rows: Tensor, share: float | None
) -> None:
    """Prune all linear layers of some blocks by weight and input (Wanda), in place.

    Blocks are pruned in their order, and each sees what the pruned ones before it make of the text:
    when a block has run, its layers are pruned by what they were given, and it runs again.

    Args:
        decoder: The transformers model without its head.
        blocks: Its layers.
        rows: Token ids of whole sequences, `(sequences, length)`.
        share: See `prune_`.

    Memory: the activations of one block for all rows.
    """
    import torch

    norms: dict[nn.Linear, Tensor] = {}

    def record(layer: nn.Linear, args: tuple[Tensor, ...]) -> None:
        found = torch.linalg.vector_norm(args[0].flatten(0, -2), dim=0, dtype=torch.float32)
        norms[layer] = torch.hypot(norms[layer], found) if layer in norms else found

    def finish(block: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        for handle in handles[block]:
            handle.remove()
        for layer in _list_linears(block):
            prune_(layer.weight, share, norms.pop(layer, None))
        return block.forward(*args, **kwargs)

    handles: dict[nn.Module, list[Any]] = {
        block: [
            *(layer.register_forward_pre_hook(record) for layer in _list_linears(block)),
            block.register_forward_hook(finish, with_kwargs=True),
        ]
        for block in blocks
    }
    with torch.no_grad():
        decoder(input_ids=rows, use_cache=False)


def _list_linears(block: nn.Module) -> list[nn.Linear]:
    from torch import nn

    return [module for module in block.modules() if isinstance(module, nn.Linear)]

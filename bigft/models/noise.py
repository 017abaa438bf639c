"""NEFTune: noise on the embeddings while a model is trained (Jain et al. 2023, arXiv 2310.05914).

To the embedding of each token uniform noise in `[-s, s]` is added, `s = alpha / sqrt(L * d)`, with
L the tokens of its example and d the size of an embedding. Evaluations and the exported model know
nothing of it. Letters in names: B sequences, T tokens, D the size of an embedding.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from bigft.errors import ConfigError


def add_noise(module: Any, alpha: float) -> str:
    """Let a model add noise to the embeddings of its input, from now on and in training mode.

    The noise comes from torch's own generator, which the loop seeds before each step, so a resumed
    run draws the same. Of an encoder and decoder the encoder's input is meant.

    Args:
        module: A transformers model that is called with names: `input_ids`, and `attention_mask`
            or `position_ids`.
        alpha: The paper's; 5 to 15 there.

    Returns:
        A note for the user.

    Raises:
        ConfigError: The model has no embeddings of tokens; or, from the first step, does not use
            them for its input.
    """
    table = _find_embeddings(module)
    lengths = _Lengths()
    module.register_forward_pre_hook(lengths.look, with_kwargs=True)
    module.register_forward_hook(lengths.check)

    def disturb(embeddings: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        lengths_BT = lengths.find(inputs[0]) if embeddings.training else None
        if lengths_BT is None:
            return output
        # In fp32: bf16 numbers between -1 and 1 are few.
        noise_BTD = torch.empty_like(output, dtype=torch.float32).uniform_(-1, 1)
        noise_BTD *= (alpha / math.sqrt(output.shape[-1]) / lengths_BT.sqrt()).unsqueeze(-1)
        return output + noise_BTD.to(output.dtype)

    table.register_forward_hook(disturb)
    return f"NEFTune: noise of alpha {alpha:g} on the embeddings, in training alone"


def count_lengths(position_ids_BT: Tensor | None, attention_mask_BT: Tensor | None) -> Tensor:
    """Count the tokens of the example that each token belongs to, `(B, T)` fp32.

    Args:
        position_ids_BT: They restart at each example where several share a sequence; looked at
            where there is no mask.
        attention_mask_BT: 1 for the tokens of the one example of a sequence, 0 for padding.
    """
    if attention_mask_BT is not None:
        lengths_B1 = attention_mask_BT.sum(1, keepdim=True).clamp(min=1).float()
        return lengths_B1.expand(attention_mask_BT.shape)
    assert position_ids_BT is not None, "a batch has one of the two"
    examples_BT = (position_ids_BT == 0).long().cumsum(1)
    counts = torch.zeros(len(examples_BT), examples_BT.shape[1] + 1, device=examples_BT.device)
    counts.scatter_add_(1, examples_BT, torch.ones_like(examples_BT, dtype=torch.float32))
    return counts.gather(1, examples_BT)


class _Lengths:
    """What the model is called with; its embeddings only see the tokens."""

    def __init__(self) -> None:
        self._inputs: dict[str, Any] = {}
        self._is_used = False

    def look(self, module: nn.Module, _: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        self._inputs, self._is_used = (inputs if module.training else {}), False

    def check(self, module: nn.Module, *_: Any) -> None:
        """Let no model go without noise in silence."""
        if self._inputs and not self._is_used:
            raise _refuse(module)
        self._inputs = {}

    def find(self, tokens: Tensor) -> Tensor | None:
        """Return the lengths for these tokens, or None where they are not the model's input."""
        ids = self._inputs.get("input_ids")
        # The decoder of a T5 looks its own tokens up in the same table.
        if ids is None or ids.shape != tokens.shape or ids.data_ptr() != tokens.data_ptr():
            return None
        self._is_used = True
        return count_lengths(self._inputs.get("position_ids"), self._inputs.get("attention_mask"))


def _find_embeddings(module: Any) -> nn.Module:
    try:
        # An encoder and decoder share a table that neither of them calls: each has a tied one.
        is_double = getattr(getattr(module, "config", None), "is_encoder_decoder", False)
        table = (module.get_encoder() if is_double else module).get_input_embeddings()
    except NotImplementedError:
        table = None
    if not isinstance(table, nn.Module):
        raise _refuse(module)
    return table


def _refuse(module: nn.Module) -> ConfigError:
    error = ConfigError(
        f"--model.neftune_alpha: {type(module).__name__} has no embeddings of its input's tokens"
        " that noise can be added to. Leave it out"
    )
    error.is_shared = True
    return error

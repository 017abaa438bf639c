"""What a model consists of, as far as memory and time go by it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Weight:
    """One parameter tensor."""

    name: str
    """As in `module.named_parameters()`."""

    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Block:
    """One layer of an encoder or a decoder: its weights, and the sizes its activations follow."""

    weights: tuple[Weight, ...]
    """In the order of `named_parameters()`."""

    hidden: int
    """Width of what goes from layer to layer."""

    heads: int
    key_value_heads: int
    head_dim: int
    inner: int
    """Width of the MLP's middle; of one expert where there are several."""

    is_gated: bool
    """Whether the MLP multiplies two projections, as SwiGLU does."""

    experts: int = 0
    """0: one plain MLP."""

    experts_per_token: int = 0
    shared_inner: int = 0
    """Width of the experts that see every token."""

    window: int | None = None
    """How far back the attention looks, in tokens, and in an encoder ahead; None: all the way."""

    has_cross_attention: bool = False

    value_head_dim: int | None = None
    """Width of a head's values, where it is not `head_dim`."""

    @property
    def numel(self) -> int:
        """Parameters of the layer."""
        return sum(weight.numel for weight in self.weights)


@dataclass(frozen=True)
class Stack:
    """Layers of one encoder or decoder, in the order in which they run."""

    kind: Literal["encoder", "decoder"]
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Architecture:
    """A whole model."""

    model_type: str
    class_name: str
    """What transformers calls it, e.g. `LlamaForCausalLM`."""

    weights: tuple[Weight, ...]
    """All of them, in the order of `named_parameters()`: each once, tied ones under the name that
    comes first."""

    stacks: tuple[Stack, ...]
    hidden: int
    vocabulary: int
    """Rows of the embedding table, and outputs of the head."""

    is_tied: bool
    """Input and output embeddings are one tensor."""

    head_outputs: int
    """Columns of what the head computes per token or row: the vocabulary, or labels."""

    buffers: tuple[Weight, ...] = ()
    """Tensors that are not trained and stay whole on every rank, saved or not: rotary
    frequencies, masks."""

    @property
    def parameters(self) -> int:
        """How many there are, tied ones once."""
        return sum(weight.numel for weight in self.weights)

    @property
    def blocks(self) -> Iterator[Block]:
        """Every layer, the encoder's first."""
        for stack in self.stacks:
            yield from stack.blocks

"""Where every tensor of a model lies in the files of a checkpoint: what readers find out.

stock_layout.read_stock_layout   what DeepSpeed wrote
state_layout.read_state_layout   what bigft wrote
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bigft.files.torch_file import TensorRef, count_elements


@dataclass(frozen=True, slots=True)
class Slice:
    """A run of elements of one file, in the order in which the tensor needs them."""

    path: Path
    offset: int
    numel: int
    dtype: str
    strided: TensorRef | None = None
    """The tensor itself, where its elements do not lie one after the other."""
    rest_offset: int | None = None
    """fp32 numbers that are kept in two: bf16 numbers at `offset`, and here the bits that are
    missing in each."""
    rest_dtype: str = ""
    """int16, or int8 of numbers of 24 bits."""


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One tensor of the model and the slices that give its elements in C order."""

    name: str
    shape: tuple[int, ...]
    slices: tuple[Slice, ...]
    dtype: str
    is_buffer: bool = False

    @property
    def numel(self) -> int:
        """Number of elements."""
        return count_elements(self.shape)


@dataclass(frozen=True)
class Layout:
    """All tensors of a checkpoint."""

    tensors: tuple[SourceTensor, ...]
    """In the order of the model's state dict, where the checkpoint tells it."""
    aliases: Mapping[str, str]
    """Name of a tied parameter -> name under which its values are kept."""
    training_dtype: str
    """`bfloat16`, `float16` or `float32`: what the model computed in."""
    world_size: int
    step: int
    zero_stage: int | None = None
    """None: the checkpoint is independent of it."""

"""Optimizer states that live in NVMe swap files, made readable.

While a run trains, DeepSpeed's tensors of swapped states are empty; saved as they are, they would
be lost without a word.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigft.errors import CheckpointError


@contextlib.contextmanager
def mapped_swap_files(outer: Any) -> Iterator[None]:
    """Let every swapped tensor read its swap file inside the block.

    The tensors are mappings of the files: what is written out of them passes through the page
    cache and never stands in memory as a whole.

    Args:
        outer: DeepSpeed's stage 3 optimizer.

    Raises:
        CheckpointError: A swap file is shorter than its tensor, or does not hold what was written.
    """
    if getattr(outer, "swap", None) is not None:
        with _mapped_pieces(outer.swap):
            yield
        return
    if not outer.swap_optimizer:
        yield
        return
    contexts = [
        (context, info.numel())
        for info in outer.optimizer_swapper.swap_params_info.values()
        for context in info.tensors
    ]
    # Left there by the engine; see bigft.engine.swap_verify.
    guard = getattr(outer, "bigft_swap_guard", None)
    wrong = guard and guard.find_damage(context.swap_path for context, _ in contexts)
    if wrong:
        raise CheckpointError(f"{wrong}, so this state cannot be saved; older checkpoints are safe")
    for context, numel in contexts:
        context.compute_tensor.data = _map_file(Path(context.swap_path), numel)
    try:
        yield
    finally:
        for context, _ in contexts:
            context.release_memory()


@contextlib.contextmanager
def _mapped_pieces(swap: Any) -> Iterator[None]:
    if wrong := swap.find_damage():
        raise CheckpointError(f"{wrong}, so this state cannot be saved; older checkpoints are safe")
    with swap.mapped():
        yield


def _map_file(path: Path, numel: int) -> Tensor:
    needed = 4 * numel
    size = path.stat().st_size if path.is_file() else 0
    if size < needed:
        raise CheckpointError(
            f"{path}: the swap file has {size:,} bytes, {needed:,} are needed; the NVMe disk is"
            " full or failing, so this state cannot be saved. Older checkpoints are untouched"
        )
    return torch.from_file(str(path), shared=False, size=numel, dtype=torch.float32)

"""Checkpoints for tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from zero_files import Weights, write_zero_checkpoint

WriteCheckpoint = Callable[..., Path]


@pytest.fixture
def write_checkpoint() -> WriteCheckpoint:
    return write_zero_checkpoint


@pytest.fixture
def weights() -> Weights:
    """Odd sizes, a scalar, and one parameter smaller than the number of ranks."""
    torch.manual_seed(3)
    shapes = {"embed": (13, 7), "layer.weight": (5, 7), "layer.bias": (5,), "one": (1,), "s": ()}
    return {name: torch.randn(shape) for name, shape in shapes.items()}

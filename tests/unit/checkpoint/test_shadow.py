"""The arithmetic of weights beside the trained ones, where these are in two halves."""

from typing import Any

import numpy as np
import pytest
import torch

from bigft.checkpoint.state.shadow import _exchange, _Part, _read, _write
from bigft.optim.reference import join, split


def _make(bits: int, size: int = 4001) -> tuple[Any, np.ndarray[Any, Any]]:
    generator = torch.Generator().manual_seed(bits)
    weights = torch.randn(size, generator=generator) * torch.logspace(-20, 10, size)
    weights[:4] = torch.tensor([0.0, -0.0, 1e-40, -1e-42])
    upper, rest = split(weights.numpy(), bits)
    halves = torch.from_numpy(upper.view(np.int16)).clone().view(torch.bfloat16)
    shadow = torch.randn(size, generator=generator)
    part = _Part("a", 0, halves, torch.from_numpy(rest).clone(), shadow)
    return part, join(upper, rest)


def _bits(values: torch.Tensor) -> torch.Tensor:
    return values.view(torch.int32).clone()


@pytest.mark.parametrize("bits", [16, 8])
def test_halves_are_read_and_written_as_the_reference_has_them(bits):
    part, whole = _make(bits)
    place = slice(7, 3000)
    assert np.array_equal(_bits(_read(part, place)).numpy(), whole[place].view(np.int32))
    _write(part, place, part.shadow[place])
    expected = torch.from_numpy(join(*split(part.shadow[place].numpy(), bits)))
    assert torch.equal(_bits(_read(part, place)), _bits(expected))


@pytest.mark.parametrize("bits", [16, 8])
def test_an_exchange_done_twice_changes_no_bit(bits):
    part, _ = _make(bits)
    every = slice(0, len(part.shadow))
    weights, shadow = _bits(_read(part, every)), _bits(part.shadow)
    _exchange(part, every)
    # In between, the weights are the shadow as far as their bits go.
    assert torch.allclose(_read(part, every), shadow.view(torch.float32), rtol=2**-16)
    assert not torch.equal(_bits(part.shadow), shadow)
    _exchange(part, every)
    assert torch.equal(_bits(part.shadow), shadow)
    assert torch.equal(_bits(_read(part, every)), weights)

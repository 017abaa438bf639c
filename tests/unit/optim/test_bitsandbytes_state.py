"""Moments move between bitsandbytes and the host's step without a change."""

import bitsandbytes
import numpy as np
import pytest
import torch

from bigft.optim.bitsandbytes_state import from_bitsandbytes, to_bitsandbytes
from bigft.optim.code8 import signed_code, unsigned_code
from bigft.optim.reference import Moments, Rates, dequantise, step_8bit

SHAPE = (50, 100)  # Its last block is not full.
OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}


def make(steps: int) -> tuple[torch.nn.Parameter, bitsandbytes.optim.AdamW8bit]:
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(SHAPE))
    optimizer = bitsandbytes.optim.AdamW8bit([parameter], **OPTIONS)
    for number in range(steps):
        parameter.grad = draw(number)
        optimizer.step()
    return parameter, optimizer


def draw(number: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(number))


def test_numbers_are_the_same_on_both_sides():
    parameter, optimizer = make(3)
    state = optimizer.state[parameter]
    moments = from_bitsandbytes(state)
    for number, codes, scales, code in (
        (1, moments.first, moments.first_scale, signed_code()),
        (2, moments.second, moments.second_scale, unsigned_code()),
    ):
        table, theirs = state[f"qmap{number}"], state[f"state{number}"].view(-1)
        blocks = torch.arange(theirs.numel()) // 256
        expected = table[theirs.long()] * state[f"absmax{number}"][blocks]
        np.testing.assert_allclose(dequantise(codes, scales, 0, code), expected, rtol=1e-6, atol=0)
    back = to_bitsandbytes(moments, int(state["step"]), SHAPE)
    for key, value in back.items():
        if torch.is_tensor(value) and not key.startswith("qmap"):
            assert torch.equal(value, state[key]), key
    assert back["step"] == state["step"] == 3


def test_a_run_goes_on_here_as_it_would_have_there():
    """One more step on each side, from the same state."""
    parameter, optimizer = make(3)
    moments = from_bitsandbytes(optimizer.state[parameter])
    ours = parameter.detach().numpy().reshape(-1).copy()
    step_8bit(ours, draw(3).numpy().reshape(-1), moments, Rates(1e-2, (0.9, 0.99), 1e-8, 0.1, 4))
    parameter.grad = draw(3)
    optimizer.step()
    np.testing.assert_allclose(ours, parameter.detach().view(-1), rtol=0, atol=2e-6)


def test_a_run_goes_on_there_as_it_would_have_here():
    parameter, optimizer = make(3)
    state = optimizer.state[parameter]
    other = torch.nn.Parameter(parameter.detach().clone())
    there = bitsandbytes.optim.AdamW8bit([other], **OPTIONS)
    there.state[other] = to_bitsandbytes(from_bitsandbytes(state), 3, SHAPE)
    for p, o in ((parameter, optimizer), (other, there)):
        p.grad = draw(3)
        o.step()
    np.testing.assert_allclose(other.detach(), parameter.detach(), rtol=0, atol=2e-6)


def test_what_does_not_fit_is_refused():
    parameter, optimizer = make(1)
    state = dict(optimizer.state[parameter])
    with pytest.raises(ValueError, match="qmap2 is not"):
        from_bitsandbytes({**state, "qmap2": state["qmap1"]})
    with pytest.raises(ValueError, match="another size than 256"):
        from_bitsandbytes({**state, "absmax1": state["absmax1"][:3]})
    with pytest.raises(ValueError, match="fp32"):
        from_bitsandbytes({**state, "state1": torch.zeros(SHAPE)})
    with pytest.raises(ValueError, match="17 elements into a block"):
        to_bitsandbytes(Moments.zeros(100, 17), 1, (100,))

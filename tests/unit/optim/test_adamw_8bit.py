"""The piecewise step against bitsandbytes' whole one: the same bytes."""

import bitsandbytes
import pytest
import torch

from bigft.optim import adamw_8bit
from bigft.optim.adamw_8bit import HostAdamW8bit

ARGUMENTS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def _run(
    cls: type, numel: int, gradient_dtype: torch.dtype = torch.float32, steps: int = 4
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(numel)
    weight = torch.nn.Parameter(torch.randn(numel, generator=generator).to(gradient_dtype))
    optimizer = cls([weight], **ARGUMENTS)
    for step in range(steps):
        weight.grad = torch.randn(numel, generator=generator).to(gradient_dtype)
        weight.grad[: numel // 3] *= 10.0**-step
        optimizer.step()
    return weight.data, optimizer.state[weight]


# 5,000: not a multiple of the 256-element blocks; the last piece is a short one.
@pytest.mark.parametrize("numel", [5_000, 8_192, 4_096 + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_equal_the_whole(monkeypatch, numel, dtype):
    monkeypatch.setattr(adamw_8bit, "_PIECE", 1024)
    calls = []
    whole_step = adamw_8bit.functional.optimizer_update_8bit_blockwise
    weight, state = _run(bitsandbytes.optim.AdamW8bit, numel, dtype)

    def count(*args, **kwargs):
        calls.append(args[1].numel())
        return whole_step(*args, **kwargs)

    monkeypatch.setattr(adamw_8bit.functional, "optimizer_update_8bit_blockwise", count)
    found, found_state = _run(HostAdamW8bit, numel, dtype)
    assert max(calls) == 1024, "the step was not taken in pieces"
    assert sum(calls) == 4 * numel
    assert torch.equal(found, weight)
    assert found_state["step"] == state["step"] == 4
    for name in ("state1", "state2", "absmax1", "absmax2"):
        assert torch.equal(found_state[name], state[name]), name
    assert found_state["state1"].dtype == torch.uint8


def test_a_small_tensor_keeps_fp32_states():
    weight, state = _run(HostAdamW8bit, 100)
    wanted, _ = _run(bitsandbytes.optim.AdamW8bit, 100)
    assert state["state1"].dtype == torch.float32
    assert torch.equal(weight, wanted)


def test_states_survive_saving_and_loading():
    weight, state = _run(HostAdamW8bit, 8_192)
    first = torch.nn.Parameter(weight.clone())
    second = torch.nn.Parameter(weight.clone())
    one, other = HostAdamW8bit([first], **ARGUMENTS), HostAdamW8bit([second], **ARGUMENTS)
    first.grad = torch.ones_like(weight)
    one.step()
    other.load_state_dict(one.state_dict())
    second.data.copy_(first.data)
    for parameter, optimizer in ((first, one), (second, other)):
        parameter.grad = torch.linspace(-1, 1, len(weight))
        optimizer.step()
    assert torch.equal(first, second)
    assert optimizer.state[second]["state1"].dtype == torch.uint8

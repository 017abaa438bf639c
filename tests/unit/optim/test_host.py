"""`HostAdamW` over flat vectors: the same numbers as the reference, and its bytes."""

from typing import Any

import numpy as np
import pytest
import torch

from bigft.optim.code8 import signed_code, unsigned_code
from bigft.optim.host import HostAdamW, Region
from bigft.optim.reference import Moments, Rates, join, split, step_8bit, step_fp32

REGIONS = [
    Region("embed", 300, 900, 0, is_coded=True),
    Region("norm", 0, 64, 960, is_coded=False),
    Region("matrix", 0, 2048, 1024, is_coded=True),
]
NUMEL = 3100  # With padding between the regions and after them.


def build(dtype: torch.dtype, **changes: Any) -> tuple[HostAdamW, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(NUMEL, generator=generator).to(dtype)
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, **changes}
    placeholder = torch.nn.Parameter(torch.zeros(1))
    optimizer = HostAdamW([{"params": [placeholder], "weight_decay": 0.1}], **options)
    state = optimizer.lay_out(flat, REGIONS)
    state.gradient = torch.empty(NUMEL, dtype=dtype)
    optimizer.param_groups[0]["params"] = [flat]
    return optimizer, flat


@pytest.mark.parametrize(
    ("dtype", "bits"), [(torch.bfloat16, 16), (torch.bfloat16, 8), (torch.float32, 16)]
)
def test_steps_are_those_of_the_reference(dtype, bits):
    optimizer, flat = build(dtype, rest_bits=bits)
    optimizer.scale = 0.5
    (state,) = optimizer.find(flat)
    padding = flat.clone()
    expected = [flat[region.place].float().numpy() for region in REGIONS]
    moments = [
        Moments.zeros(r.numel, r.phase)
        if r.is_coded
        else (np.zeros(r.numel, np.float32), np.zeros(r.numel, np.float32))
        for r in REGIONS
    ]
    for step in range(1, 6):
        state.gradient.copy_(torch.randn(NUMEL, generator=torch.Generator().manual_seed(step)))
        optimizer.step()
        rates = Rates(1e-2, (0.9, 0.99), 1e-8, 0.1, step)
        for region, weights, kept in zip(REGIONS, expected, moments, strict=True):
            gradient = state.gradient[region.place].float().numpy()
            if region.is_coded:
                step_8bit(weights, gradient, kept, rates, 0.5)
            else:
                step_fp32(weights, gradient, *kept, rates, 0.5)
            if dtype == torch.bfloat16:
                # Between steps a weight is no more than what is kept of it.
                weights[:] = join(*split(weights, bits))
    for row, weights in zip(state.rows, expected, strict=True):
        found = flat[row.region.place]
        if dtype == torch.float32:
            assert np.array_equal(found.numpy(), weights)
            continue
        upper, rest = split(weights, bits)
        assert np.array_equal(found.view(torch.uint16).numpy(), upper)
        assert np.array_equal(row.rest.numpy(), rest)
        assert np.array_equal(join(upper, rest), weights)
    for number, code, scale, plain in (
        (1, signed_code(), "first_scale", 0),
        (2, unsigned_code(), "second_scale", 1),
    ):
        for kept, row in zip(moments, state.rows, strict=True):
            values = row.moments[number - 1]
            if row.scales is not None:
                name = scale.removesuffix("_scale")
                assert np.array_equal(values.numpy(), getattr(kept, name))
                assert np.array_equal(row.scales[number - 1].numpy(), getattr(kept, scale))
                assert values.numpy().max() <= len(code.values) - 1
            else:
                assert np.array_equal(values.numpy(), kept[plain])
    assert torch.equal(flat[900:960], padding[900:960])
    assert torch.equal(flat[3072:], padding[3072:])


def test_bytes_per_parameter():
    optimizer, flat = build(torch.bfloat16)
    (state,) = optimizer.find(flat)
    coded = 900 + 2048
    blocks = 4 + 8  # 900 elements from the 44th of a block on touch four.
    assert state.moment_bytes == 2 * coded + 2 * 4 * blocks + 2 * 4 * 64
    assert state.num_bytes == state.moment_bytes + 2 * (coded + 64)
    assert state.kept.numel() == state.num_bytes


def test_a_schedule_drives_the_rate():
    optimizer, flat = build(torch.float32)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    optimizer.find(flat)[0].gradient.fill_(1.0)
    optimizer.step()
    schedule.step()
    after = flat.clone()
    optimizer.step()
    assert torch.equal(flat, after)


@pytest.mark.parametrize("loss_scale", [1.0, 1024.0])
@pytest.mark.parametrize(("max_norm", "is_clipped"), [(0.0, False), (1e3, False), (0.5, True)])
def test_scale_unscales_and_clips_as_torch_does(loss_scale, max_norm, is_clipped):
    optimizer, _ = build(torch.float32)
    gradient = torch.linspace(-2, 3, 40)
    scaled = gradient * loss_scale
    optimizer.set_scale(loss_scale, scaled.norm(), max_norm)
    expected = torch.nn.Parameter(gradient.clone())
    expected.grad = gradient.clone()
    if max_norm:
        torch.nn.utils.clip_grad_norm_([expected], max_norm)
    torch.testing.assert_close(scaled * optimizer.scale, expected.grad)
    assert is_clipped == (not torch.equal(expected.grad, gradient))

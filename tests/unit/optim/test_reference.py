"""The numpy reference against torch's AdamW, and the two halves of a weight."""

import numpy as np
import pytest
import torch

from bigft.optim.code8 import signed_code, unsigned_code
from bigft.optim.reference import (
    Moments,
    Rates,
    dequantise,
    join,
    quantise,
    split,
    step_8bit,
    step_fp32,
)

STEPS = 30


def run_torch(weights, gradients, dtype):
    parameter = torch.nn.Parameter(torch.from_numpy(weights.copy()).to(dtype))
    optimizer = torch.optim.AdamW([parameter], lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient).to(dtype)
        optimizer.step()
    return parameter.detach().numpy()


def rates_of(step):
    return Rates(1e-2, (0.9, 0.99), 1e-8, 0.1, step)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(1000).astype(np.float32)
    # Every element has a direction of its own, with noise.
    gradients = rng.standard_normal(1000) + rng.standard_normal((STEPS, 1000))
    return weights, gradients.astype(np.float32)


def test_moments_in_fp32_are_torchs_adamw(problem):
    weights, gradients = problem
    ours, first, second = weights.copy(), np.zeros(1000, np.float32), np.zeros(1000, np.float32)
    for number, gradient in enumerate(gradients, 1):
        assert step_fp32(ours, gradient * 4, first, second, rates_of(number), 0.25) == 0
    np.testing.assert_allclose(
        ours, run_torch(weights, gradients, torch.float64), rtol=0, atol=5e-6
    )


def test_moments_in_8_bits_stay_close(problem):
    """The path of every weight differs by a few percent of its length."""
    weights, gradients = problem
    ours, moments = weights.copy(), Moments.zeros(1000, phase=100)
    for number, gradient in enumerate(gradients, 1):
        step_8bit(ours, gradient, moments, rates_of(number))
    exact = run_torch(weights, gradients, torch.float64)
    moved = np.abs(exact - weights).mean()
    assert np.abs(ours - exact).mean() < 0.03 * moved


def test_a_block_of_zeros_stays_one():
    moments, weights = Moments.zeros(300), np.ones(300, np.float32)
    step_8bit(weights, np.zeros(300, np.float32), moments, Rates(1e-2, (0.9, 0.99), 1e-8, 0.0, 1))
    assert np.all(weights == 1)
    assert np.all(moments.first_scale == 0)
    assert np.all(dequantise(moments.first, moments.first_scale, 0, signed_code()) == 0)


def test_blocks_are_counted_from_the_parameters_beginning():
    """Cut anywhere, a block that one part holds whole has the same codes."""
    rng = np.random.default_rng(1)
    values = rng.standard_normal(2000).astype(np.float32)
    codes, scales = quantise(values, 0, signed_code())
    part, part_scales = quantise(values[700:1500], 700 % 256, signed_code())
    assert np.array_equal(part[768 - 700 : 1280 - 700], codes[768:1280])
    assert np.array_equal(part_scales[1:3], scales[3:5])


def test_quantising_twice_changes_nothing():
    rng = np.random.default_rng(2)
    for code, values in (
        (signed_code(), rng.standard_normal(5000)),
        (unsigned_code(), rng.standard_normal(5000) ** 2),
    ):
        codes, scales = quantise(values.astype(np.float32), 17, code)
        again, _ = quantise(dequantise(codes, scales, 17, code), 17, code)
        # Where the largest magnitude of a block is negative, its code is not 1 but the one below.
        assert np.mean(again != codes) < 0.02


@pytest.mark.parametrize("bits", [16, 8])
def test_a_weight_is_the_sum_of_its_halves(bits):
    rng = np.random.default_rng(3)
    weights = (rng.standard_normal(100_000) * 10.0 ** rng.uniform(-9, 3, 100_000)).astype(
        np.float32
    )
    ties = np.array([0x3F808000, 0x3F818000, 0xBF808000, 0x3F807FFF, 0, 0x80000000], np.uint32)
    weights = np.concatenate([weights, ties.view(np.float32)])
    upper, rest = split(weights, bits)
    if bits == 16:
        assert np.array_equal(join(upper, rest).view(np.uint32), weights.view(np.uint32))
    else:
        np.testing.assert_allclose(join(upper, rest), weights, rtol=2**-16, atol=0)
    # The upper half is the bf16 number that torch rounds to, but for ties.
    low = torch.from_numpy(join(upper, rest)).to(torch.bfloat16).view(torch.uint16).numpy()
    is_tie = (join(upper, rest).view(np.uint32) & 0xFFFF) == 0x8000
    assert np.array_equal(low[~is_tie], upper[~is_tie])


def test_a_small_step_is_kept_where_bf16_alone_would_lose_it():
    """At a rate of 1e-5 a weight of 1 does not move in bf16, ever; its remainder does."""
    upper, rest = split(np.ones(256, np.float32))
    moments = Moments.zeros(256)
    weights = join(upper, rest)
    for number in range(1, 501):
        step_8bit(
            weights, np.ones(256, np.float32), moments, Rates(1e-5, (0.9, 0.999), 1e-8, 0, number)
        )
        upper, rest = split(weights)
        weights = join(upper, rest)
    np.testing.assert_allclose(weights, 1 - 500e-5, rtol=1e-4)
    alone = torch.ones(256, dtype=torch.bfloat16)
    for _ in range(500):
        alone -= 1e-5
    assert torch.all(alone == 1)

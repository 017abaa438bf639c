"""The 8-bit code, and arithmetic with one rounding."""

from fractions import Fraction

import numpy as np
import pytest

from bigft.optim.code8 import Code, find_codes, fused, signed_code, unsigned_code

CODES = {True: signed_code(), False: unsigned_code()}


@pytest.fixture(params=[True, False], ids=["signed", "unsigned"])
def case(request: pytest.FixtureRequest) -> tuple[bool, Code]:
    return request.param, CODES[request.param]


def test_values_are_those_of_bitsandbytes(case):
    from bitsandbytes.functional import create_dynamic_map

    signed, code = case
    theirs = create_dynamic_map(signed).numpy()
    assert np.array_equal(theirs == 0, code.values == 0)
    np.testing.assert_allclose(code.values, theirs, rtol=2.4e-7, atol=0)


def test_every_value_has_its_own_code(case):
    _, code = case
    assert np.array_equal(find_codes(code.values, code), np.arange(256))


def test_codes_are_the_nearest(case):
    """By search in fp64; within a few roundings of a middle either neighbour is."""
    signed, code = case
    rng = np.random.default_rng(0)
    middles = (code.values[1:].astype(np.float64) + code.values[:-1]) / 2
    drawn = rng.uniform(-1 if signed else 0, 1, 300_000) * 10.0 ** rng.integers(-8, 1, 300_000)
    close = [middles * (1 + 2e-6), middles * (1 - 2e-6)]
    numbers = np.concatenate([drawn, *close, [0, -0.0, 1, 1e-45]]).astype(np.float32)
    found, nearest = find_codes(numbers, code), np.searchsorted(middles, numbers.astype(np.float64))
    error = np.abs(code.values[found].astype(np.float64) - numbers)
    least = np.abs(code.values[nearest].astype(np.float64) - numbers)
    assert np.all(error <= least * (1 + 1e-4))
    assert (found != nearest).mean() < 1e-4


def test_zero_and_signs_are_kept():
    code = signed_code()
    numbers = np.array([0.0, -0.0, 1e-7, -1e-7, 1e-6, -1e-6, 1.0, -1.0], np.float32)
    values = code.values[find_codes(numbers, code)]
    assert np.array_equal(np.sign(values), [0, 0, 0, 0, 1, -1, 1, -1])
    assert values[-2] == 1
    assert values[-1] == code.values[0]


def test_fused_has_one_rounding():
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(3000).astype(np.float32) for _ in range(3))
    c = (c * 10.0 ** rng.integers(-9, 3, 3000)).astype(np.float32)
    # And sums that cancel, to the last bit and nearly.
    c[:1000] = -(a * b)[:1000]
    for x, y, z, found in zip(a, b, c, fused(a, b, c), strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        assert found == _round(exact)


def _round(exact: Fraction) -> np.float32:
    near = np.float32(float(exact))
    low, high = np.float32(-np.inf), np.float32(np.inf)
    candidates = (near, np.nextafter(near, low), np.nextafter(near, high))
    return min(candidates, key=lambda x: (abs(Fraction(float(x)) - exact), x.view(np.uint32) & 1))

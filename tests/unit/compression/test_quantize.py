"""What compressed-tensors stores, against rounding written out."""

from typing import Any

import pytest
import torch

from bigft.compression.quantize import Quantizer, find_group_size


def round_plainly(weight: Any, kind: str) -> Any:
    """The nearest multiple of a scale that the largest weight of a row or a group decides."""
    groups = weight.unflatten(1, (-1, 32)) if kind == "int4" else weight.unsqueeze(1)
    largest = groups.abs().amax(-1, keepdim=True)
    if kind == "fp8":
        scale = largest / 448
        return ((groups / scale).to(torch.float8_e4m3fn).float() * scale).flatten(1)
    top = {"int8": 127.5, "int4": 7.5}[kind]
    scale = largest / top
    low, high = -int(top + 0.5), int(top - 0.5)
    return ((groups / scale).round().clamp(low, high) * scale).flatten(1)


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_weights_are_the_nearest_that_can_be_stored(kind: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 96)
    quantizer = Quantizer(kind, {96}, ["lm_head"])
    stored = quantizer.round(weight)
    found = quantizer.restore(stored)
    assert torch.allclose(found, round_plainly(weight, kind), atol=1e-6)
    bits = {"int8": 8, "int4": 4, "fp8": 8}[kind]
    matrix = stored["weight" if kind == "fp8" else "weight_packed"]
    assert matrix.nbytes == 24 * 96 * bits // 8
    described = quantizer.describe()
    assert described["ignore"] == ["lm_head"]
    assert described["config_groups"]["group_0"]["weights"]["num_bits"] == bits
    assert described["quantization_status"] == "compressed"


def test_a_row_of_zeros_stays_one() -> None:
    quantizer = Quantizer("int8", {32}, [])
    assert (quantizer.restore(quantizer.round(torch.zeros(2, 32))) == 0).all()


def test_groups_fit_into_every_row() -> None:
    assert find_group_size({384, 1024}) == 128
    assert find_group_size({384, 64}) == 64
    assert find_group_size({96}) == 32
    assert find_group_size({128, 48}) is None

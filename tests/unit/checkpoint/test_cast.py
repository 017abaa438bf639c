import numpy as np
import pytest
import torch

from bigft.checkpoint.cast import CARRIERS, cast_into, is_finite

EDGES = [
    0x00000000, 0x80000000, 0x00000001, 0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001,
    0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x477FE000, 0x477FEFFF, 0x477FF000, 0x33000000,
    0x33000001, 0x38800000, 0x387FFFFF,
]  # fmt: skip
NANS = [0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000, 0x7F80FFFF]


def make_singles() -> np.ndarray:
    """All exponents with random mantissas, and the edges of rounding."""
    bits = np.random.default_rng(0).integers(0, 2**32, 300_001, dtype=np.uint32)
    singles = np.concatenate([np.array(EDGES, np.uint32), bits]).view(np.float32)
    return singles[~np.isnan(singles)]


def cast(source: np.ndarray, source_dtype: str, target_dtype: str) -> np.ndarray:
    target = np.empty(len(source), CARRIERS[target_dtype])
    cast_into(source, source_dtype, target, target_dtype)
    return target


@pytest.mark.parametrize(
    ("dtype", "torch_dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_narrowing_equals_torch_bit_for_bit(dtype: str, torch_dtype: torch.dtype) -> None:
    singles = make_singles()
    expected = torch.from_numpy(singles).to(torch_dtype).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(cast(singles, "float32", dtype).view(np.uint16), expected)


def test_every_bfloat16_survives_the_way_to_float32_and_back() -> None:
    halves = np.arange(2**16, dtype=np.uint16)
    expected = torch.from_numpy(halves.view(np.int16)).view(torch.bfloat16).float().numpy()
    singles = cast(halves, "bfloat16", "float32")
    assert singles.tobytes() == expected.tobytes()
    back = cast(singles, "float32", "bfloat16")
    ordered = ~np.isnan(singles)
    assert np.array_equal(back[ordered], halves[ordered])


def test_every_nan_stays_nan_in_bfloat16() -> None:
    nans = np.array(NANS, np.uint32).view(np.float32)
    halves = cast(nans, "float32", "bfloat16")
    assert np.isnan(cast(halves, "bfloat16", "float32")).all()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_one_bad_value_is_noticed_wherever_it_is(dtype: str, bad: float) -> None:
    for position in (0, 65_535, 65_536, 99_999):
        values = torch.full((100_000,), -65_000.0, dtype=getattr(torch, dtype))
        carrier = {"bfloat16": torch.int16}.get(dtype, values.dtype)
        raw = values.view(carrier).numpy()
        assert is_finite(raw, dtype)
        values[position] = bad
        assert not is_finite(raw, dtype)


def test_integers_are_always_finite() -> None:
    assert is_finite(np.array([2**62, -1]), "int64")

"""Parts of parameters for the native step, and what the reference makes of the same ones."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bigft.optim.code8 import BLOCK
from bigft.optim.native.binding import PART, Native, number_blocks, pack_groups
from bigft.optim.reference import Moments, Rates, join, split, step_8bit, step_fp32

BITS = {"fp32": 0, "split_16": 16, "split_8": 8}
RATES = [Rates(1e-3, (0.9, 0.999), 1e-8, 0.01, 1), Rates(3e-4, (0.8, 0.95), 1e-6, 0.0, 1)]


def rates_of(step: int) -> list[Rates]:
    return [replace(rates, step=step) for rates in RATES]


def to_bf16(values: Any) -> Any:
    return ((values.view(np.uint32) + np.uint32(0x8000)) >> 16).astype(np.uint16)


def from_bf16(bits: Any) -> Any:
    return (bits.astype(np.uint32) << 16).view(np.float32)


@dataclass
class Piece:
    """A part: fp32 weights, gradients, and moments in 8 bits or (two arrays) in fp32."""

    weights: Any
    gradients: Any
    moments: Any
    group: int = 0


def make_pieces(rng: Any, sizes: list[int], phases: list[int], coded: list[bool]) -> list[Piece]:
    pieces = []
    for size, phase, is_coded in zip(sizes, phases, coded, strict=True):
        weights = (rng.standard_normal(size) * 0.05).astype(np.float32)
        # Magnitudes over many decades, with zeros among them.
        gradients = rng.standard_normal(size) * 10.0 ** rng.uniform(-9, 1, size)
        gradients = np.where(rng.random(size) < 0.05, 0, gradients).astype(np.float32)
        if is_coded:
            moments: Any = Moments.zeros(size, phase)
        else:
            moments = (np.zeros(size, np.float32), np.zeros(size, np.float32))
        pieces.append(Piece(weights, gradients, moments, int(rng.integers(2))))
    return pieces


def copy_pieces(pieces: list[Piece]) -> list[Piece]:
    def copied(moments: Any) -> Any:
        if isinstance(moments, Moments):
            names = ("first", "second", "first_scale", "second_scale")
            return replace(moments, **{name: getattr(moments, name).copy() for name in names})
        return tuple(array.copy() for array in moments)

    return [Piece(p.weights.copy(), p.gradients.copy(), copied(p.moments), p.group) for p in pieces]


def step_reference(pieces: list[Piece], rates: list[Rates], scale: float, bits: int = 0) -> int:
    """Step with numpy; `bits`: the weights are rounded to what a remainder of these bits keeps."""
    dropped = 0
    for piece in pieces:
        arguments = (rates[piece.group], scale)
        if isinstance(piece.moments, Moments):
            dropped += step_8bit(piece.weights, piece.gradients, piece.moments, *arguments)
        else:
            dropped += step_fp32(piece.weights, piece.gradients, *piece.moments, *arguments)
        if bits:
            piece.weights[:] = join(*split(piece.weights, bits))
    return dropped


def step_native(
    native: Native,
    pieces: list[Piece],
    rates: list[Rates],
    scale: float,
    kind: str,
    gradients: str,
    **options: Any,
) -> tuple[int, list[Any]]:
    """Step with the library, in place; returns the number of dropped gradients and bf16 copies."""
    parts = np.zeros(len(pieces), PART)
    bits = BITS[kind]
    alive, copies, split_weights = [], [], []
    for row, piece in zip(parts, pieces, strict=True):
        row["size"], row["group"] = len(piece.weights), piece.group
        given = to_bf16(piece.gradients) if gradients == "bfloat16" else piece.gradients
        copy = np.zeros(len(piece.weights), np.uint16)
        upper, rest = split(piece.weights, bits or 16)
        alive += [given, copy, upper, rest]
        row["gradients"] = given.ctypes.data
        if bits:
            row["weights"], row["rest"] = upper.ctypes.data, rest.ctypes.data
            split_weights.append((upper, rest))
            copies.append(upper)
        else:
            row["weights"], row["copy"] = piece.weights.ctypes.data, copy.ctypes.data
            copies.append(copy)
        if isinstance(piece.moments, Moments):
            m = piece.moments
            row["phase"] = m.phase
            row["moment1"], row["moment2"] = m.first.ctypes.data, m.second.ctypes.data
            row["scale1"], row["scale2"] = m.first_scale.ctypes.data, m.second_scale.ctypes.data
        else:
            row["moment1"], row["moment2"] = (array.ctypes.data for array in piece.moments)
    number_blocks(parts)
    dropped = native.step(
        parts, pack_groups(rates), weights=kind, gradients=gradients, scale=scale, **options
    )
    for piece, (upper, rest) in zip(pieces, split_weights, strict=False):
        piece.weights[:] = join(upper, rest)
    return dropped, copies


def compare(native: Native, seed: int, kind: str, gradients: str, isa: str, steps: int = 4) -> None:
    """Take the same steps over random parts with the library and with the reference."""
    rng = np.random.default_rng(seed)
    ours = make_pieces(rng, *draw_layout(rng))
    # What a remainder cannot keep is not there from the start.
    expected = copy_pieces(ours)
    if kind == "split_8":
        for piece, other in zip(ours, expected, strict=True):
            piece.weights[:] = from_bf16(to_bf16(piece.weights))
            other.weights[:] = piece.weights
    for step in range(1, steps + 1):
        scale = float(rng.choice([1.0, 0.37, 1 / 1024]))
        for piece, other in zip(ours, expected, strict=True):
            drawn = rng.standard_normal(len(piece.gradients)) * 10.0 ** rng.uniform(-8, 0)
            drawn = drawn.astype(np.float32)
            piece.gradients = drawn
            other.gradients = from_bf16(to_bf16(drawn)) if gradients == "bfloat16" else drawn
        threads = int(rng.integers(1, 4))
        arguments = (rates_of(step), scale, kind, gradients)
        dropped, copies = step_native(native, ours, *arguments, isa=isa, threads=threads)
        assert dropped == 0
        step_reference(expected, rates_of(step), scale, BITS[kind])
        assert_same_bits(ours, expected)
        for copy, piece in zip(copies, expected, strict=True):
            np.testing.assert_array_equal(copy, to_bf16(piece.weights))


def assert_same_bits(one: list[Piece], other: list[Piece]) -> None:
    for a, b in zip(one, other, strict=True):
        for x, y in zip(_arrays(a), _arrays(b), strict=True):
            np.testing.assert_array_equal(x.view(np.uint8), y.view(np.uint8))


def _arrays(piece: Piece) -> list[Any]:
    m = piece.moments
    if isinstance(m, Moments):
        return [piece.weights, m.first, m.second, m.first_scale, m.second_scale]
    return [piece.weights, *m]


def draw_layout(rng: Any) -> tuple[list[int], list[int], list[bool]]:
    """Sizes around the block's, phases, and which parts are coded."""
    count = int(rng.integers(1, 6))
    choices = [1, 7, 255, 256, 257, 1000, 4096, int(rng.integers(1, 3000))]
    sizes = [int(rng.choice(choices)) for _ in range(count)]
    phases = [int(rng.choice([0, 1, 128, 255, int(rng.integers(BLOCK))])) for _ in range(count)]
    return sizes, phases, [bool(rng.random() < 0.75) for _ in range(count)]

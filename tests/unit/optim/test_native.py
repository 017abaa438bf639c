"""The native step equals the numpy reference bit for bit, whatever it runs on."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from native_parts import (
    RATES,
    Piece,
    assert_same_bits,
    compare,
    copy_pieces,
    make_pieces,
    rates_of,
    step_native,
    step_reference,
)

from bigft.errors import LaunchError
from bigft.optim.native import binding
from bigft.optim.native.binding import ISAS, WEIGHTS, load_native
from bigft.optim.native.build import BuildError, build
from bigft.optim.reference import Moments


def find_isas() -> list[str]:
    native = load_native()
    piece = make_pieces(np.random.default_rng(0), [1], [0], [True])
    found = []
    for isa in ISAS:
        try:
            step_native(native, piece, RATES, 1.0, "fp32", "float32", isa=isa)
            found.append(isa)
        except ValueError:
            continue
    return found


@pytest.mark.parametrize("isa", find_isas())
@pytest.mark.parametrize("gradients", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_equals_the_reference(kind, gradients, isa):
    for seed in range(8):
        compare(load_native(), seed, kind, gradients, isa)


@pytest.mark.nightly
@pytest.mark.parametrize("isa", find_isas())
@pytest.mark.parametrize("seed", range(0, 2000, 20))
def test_equals_the_reference_at_length(seed, isa):
    for number in range(seed, seed + 20):
        kind, gradients = list(WEIGHTS)[number % 3], ["float32", "bfloat16"][number % 2]
        compare(load_native(), number, kind, gradients, isa, steps=12)


def test_several_instruction_sets_are_compared():
    assert "scalar" in find_isas()
    assert len(find_isas()) >= 2
    assert load_native().isa == find_isas()[-1]


@pytest.mark.parametrize("isa", find_isas())
def test_numbers_that_are_not_finite_count_as_zero(isa):
    """Where they come from: bits of a bf16 gradient, or a scale that lets a large one overflow."""
    rng = np.random.default_rng(1)
    for value, scale in ((np.nan, 1.0), (np.inf, 1.0), (-np.inf, 0.1), (3e38, 100.0)):
        ours = make_pieces(rng, [700, 3], [5, 0], [True, False])
        ours[0].gradients = np.full(700, 1e-3, np.float32)
        ours[1].gradients = np.full(3, 1e-3, np.float32)
        for piece, places in zip(ours, ([0, 300, 699], [1]), strict=True):
            piece.gradients[places] = value
        expected = copy_pieces(ours)
        dropped, _ = step_native(load_native(), ours, RATES, scale, "fp32", "float32", isa=isa)
        assert dropped == step_reference(expected, RATES, scale) == 4
        assert_same_bits(ours, expected)
        assert all(np.isfinite(piece.weights).all() for piece in ours)


@pytest.mark.parametrize("isa", find_isas())
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-30, 1e-20, 1e-12, 1e18, 1e19, 3e38])
def test_the_ends_of_the_range(isa, value):
    pieces = [
        Piece(
            np.linspace(-1, 1, 300, dtype=np.float32),
            np.full(300, value, np.float32) * np.where(np.arange(300) % 2, 1, -1),
            Moments.zeros(300, 40),
        )
    ]
    pieces[0].gradients = pieces[0].gradients.astype(np.float32)
    expected = copy_pieces(pieces)
    for step in (1, 2, 3):
        rates = rates_of(step)
        step_native(load_native(), pieces, rates, 1.0, "split_16", "float32", isa=isa)
        step_reference(expected, rates, 1.0, 16)
        assert_same_bits(pieces, expected)
        assert np.isfinite(pieces[0].weights).all()


def test_arithmetic_is_the_same_when_the_caller_flushes_subnormal_numbers():
    import torch

    rng = np.random.default_rng(2)
    ours = make_pieces(rng, [600], [0], [False])
    ours[0].gradients = np.full(600, 3e-21, np.float32)  # Their squares are subnormal.
    expected = copy_pieces(ours)
    before = torch.set_flush_denormal(True)
    try:
        step_native(load_native(), ours, RATES, 1.0, "fp32", "float32")
    finally:
        torch.set_flush_denormal(False)
    assert before
    step_reference(expected, RATES, 1.0)
    assert_same_bits(ours, expected)
    assert (ours[0].moments[1] > 0).all()


# Building.


def test_a_missing_compiler_is_named_with_the_repair(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(LaunchError, match=r"no-such-compiler.*apt-get install g\+\+"):
        binding.load_native.__wrapped__()


def test_a_failing_compiler_leaves_nothing_behind(tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'out of luck' >&2\nexit 3\n")
    compiler.chmod(0o755)
    with pytest.raises(BuildError, match="failed: out of luck"):
        build(tmp_path / "lib.so", compiler=str(compiler))
    assert [path.name for path in tmp_path.iterdir()] == ["c++"]


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None or shutil.which("qemu-aarch64-static") is None,
    reason="no compiler and no emulator of 64-bit ARM (g++-aarch64-linux-gnu, qemu-user-static)",
)
def test_neon_equals_the_reference_in_an_emulator(tmp_path):
    """A program of that machine takes the steps of files that this one compares."""
    script = Path(__file__).resolve().parents[2] / "support/neon_check.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "24 of 24 equal" in done.stdout

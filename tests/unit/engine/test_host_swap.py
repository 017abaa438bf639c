"""Pieces of the optimizer's state in files: the same numbers as in memory, and nothing lost."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bigft.engine import host_swap
from bigft.engine.host_swap import FileRange, HostSwap, cut_region
from bigft.engine.swap_verify import GROUP_BYTES, SwapGuard, compute_fingerprint
from bigft.errors import TrainingError
from bigft.optim.code8 import BLOCK
from bigft.optim.host import FlatState, HostAdamW, Region

NUMEL = 40_000
OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8}


def make_weights(seed: int = 0) -> torch.Tensor:
    return torch.randn(NUMEL, generator=torch.Generator().manual_seed(seed)).bfloat16()


def make_gradient(step: int) -> torch.Tensor:
    return make_weights(100 + step)


def build_swapped(
    folder: Path, files: list[Path], guard: SwapGuard | None = None
) -> tuple[HostAdamW, torch.Tensor, HostSwap]:
    """Pieces over weights in files, and one over weights in memory."""
    optimizer = HostAdamW([{"params": [torch.ones(1)]}], **OPTIONS)
    swap = HostSwap(folder)
    swap.guard = guard
    states = []
    for number, path in enumerate(files):
        region = Region(f"p{number}", 0, NUMEL, number * NUMEL, is_coded=number != 1)
        state = FlatState(torch.bfloat16, [region])
        weights = make_weights(number)
        path.write_bytes(weights.view(torch.uint8).numpy().tobytes())
        swap.add(state, [FileRange(path, 0, 2 * NUMEL)])
        states.append(state)
    flat = torch.empty(0)
    optimizer.opened = swap.opened
    optimizer.lay_out_elsewhere(flat, states)
    optimizer.param_groups[0]["params"] = [flat]
    return optimizer, flat, swap


@pytest.fixture
def files(tmp_path) -> list[Path]:
    return [tmp_path / f"weights_{n}" for n in range(5)]


def take_steps(optimizer: HostAdamW, count: int) -> None:
    for step in range(count):
        gradient = torch.cat([make_gradient(10 * step + n) for n in range(5)])
        for state in optimizer.flat_states:
            state.gradient = gradient
        optimizer.step()


def test_steps_are_those_in_memory(tmp_path, files):
    """More pieces than slots, so that every slot serves several."""
    optimizer, _, swap = build_swapped(tmp_path / "swap", files)
    take_steps(optimizer, 3)
    swap.drain()
    plain = HostAdamW([{"params": [torch.ones(1)]}], **OPTIONS)
    flat = torch.cat([make_weights(n) for n in range(5)])
    regions = [Region(f"p{n}", 0, NUMEL, n * NUMEL, is_coded=n != 1) for n in range(5)]
    plain.lay_out(flat, regions)
    plain.param_groups[0]["params"] = [flat]
    take_steps(plain, 3)
    for n, path in enumerate(files):
        found = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.bfloat16)
        assert torch.equal(found, flat[n * NUMEL : (n + 1) * NUMEL])
    with swap.mapped():
        (kept,) = plain.find(flat)
        for swapped, row in zip(optimizer.flat_states, kept.rows, strict=True):
            (other,) = swapped.rows
            assert torch.equal(other.weights, row.weights)
            assert torch.equal(other.rest, row.rest)
            for one, two in zip(other.moments, row.moments, strict=True):
                assert torch.equal(one, two)
    assert not any(state.rows for state in optimizer.flat_states)


def test_bytes_of_a_step(tmp_path, files):
    optimizer, _, swap = build_swapped(tmp_path / "swap", files)
    take_steps(optimizer, 1)
    swap.drain()
    first = swap.io.bytes_read, swap.io.bytes_written
    take_steps(optimizer, 1)
    swap.drain()
    states = sum(host_swap.round_up(state.num_bytes) for state in optimizer.flat_states)
    weights = 5 * 2 * NUMEL
    assert first == (weights, states + weights)  # Moments are zero until they are written.
    assert swap.io.bytes_read - first[0] == states + weights
    assert swap.io.bytes_written - first[1] == states + weights
    assert swap.num_bytes == states


def test_a_lost_write_ends_the_run(tmp_path, files):
    guard = SwapGuard()
    optimizer, _, swap = build_swapped(tmp_path / "swap", files, guard)
    take_steps(optimizer, 1)
    swap.drain()
    path = tmp_path / "swap/piece_00002.swp"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    assert str(path) in (swap.find_damage() or "")
    take_steps(optimizer, 1)
    swap.drain()
    assert any(str(path) in text for text in guard._failures)
    other, _, unguarded = build_swapped(tmp_path / "other", files)
    take_steps(other, 1)
    unguarded.drain()
    (tmp_path / "other/piece_00001.swp").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"piece_00001.*full or failing"):
        take_steps(other, 1)


def test_nothing_is_damaged_where_nothing_is(tmp_path, files):
    optimizer, _, swap = build_swapped(tmp_path / "swap", files)
    assert swap.find_damage() is None
    take_steps(optimizer, 2)
    assert swap.find_damage() is None


def test_what_is_written_in_place_is_known_to_the_guard(tmp_path, files):
    guard = SwapGuard()
    for n, path in enumerate(files):
        guard.wrote(str(path), make_weights(n))
    optimizer, _, swap = build_swapped(tmp_path / "swap", files, guard)
    take_steps(optimizer, 2)
    swap.drain()
    assert guard.find_damage(map(str, files)) is None
    data = bytearray(files[3].read_bytes())
    data[:4096] = bytes(4096)
    files[3].write_bytes(data)
    assert str(files[3]) in (guard.find_damage(map(str, files)) or "")


@pytest.mark.parametrize("size", [GROUP_BYTES * 5, GROUP_BYTES * 5 + 4096 * 3 + 512])
def test_a_fingerprint_in_pieces_is_that_of_the_whole(tmp_path, size):
    data = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    guard, path = SwapGuard(), tmp_path / "file"
    guard.wrote(str(path), torch.zeros(size, dtype=torch.uint8))
    for start, end in ((0, 2 * GROUP_BYTES), (2 * GROUP_BYTES, 4 * GROUP_BYTES)):
        guard.wrote_range(str(path), start, data[start:end])
    assert guard.compare(str(path), data) is not None
    guard.wrote_range(str(path), 4 * GROUP_BYTES, data[4 * GROUP_BYTES :])
    assert guard.compare(str(path), data) is None
    assert np.array_equal(guard._written[str(path)][1], compute_fingerprint(data))


@pytest.mark.parametrize(
    ("start", "numel", "pieces"),
    [(0, 1 << 24, 1), (0, (1 << 24) + 1, 2), (512, 50_000_000, 3), (100, 50_000_000, 1)],
)
def test_pieces_of_a_region_are_its_own_elements(start, numel, pieces):
    region = Region("p", start, numel, 64, is_coded=True)
    found = cut_region(region, 2)
    assert len(found) == pieces
    assert sum(piece.numel for piece in found) == numel
    position = 0
    for piece in found:
        assert piece.start - start == piece.offset - 64 == position
        assert len(found) == 1 or piece.start % BLOCK == 0
        assert position * 2 % GROUP_BYTES == 0
        position += piece.numel


def test_space_is_given_back_piece_by_piece(tmp_path, files):
    optimizer, _, swap = build_swapped(tmp_path / "swap", files)
    swap.reserve()
    take_steps(optimizer, 1)
    paths = [*files, *sorted((tmp_path / "swap").iterdir())]
    swap.drain()
    before = sum(path.stat().st_blocks for path in paths)
    with swap.mapped():
        for state in optimizer.flat_states:
            for row in state.rows:
                for part in (row.weights, row.rest, *row.moments, *(row.scales or ())):
                    swap.release(part)
    after = sum(path.stat().st_blocks for path in paths)
    # Pages that belong to two parts stay.
    assert after < 0.5 * before


def test_space_that_is_not_there_is_said_at_once(tmp_path, files, monkeypatch):
    _, _, swap = build_swapped(tmp_path / "swap", files)

    def refuse(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(host_swap.os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match="No space left"):
        swap.reserve()

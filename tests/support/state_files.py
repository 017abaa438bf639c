"""Checkpoints in bigft's own state format, written without an engine, for any ranks.

The files are those that `bigft train` commits: `state/index.json`, one safetensors file per rank
with 1-D fragments of flattened parameters, `hf/`, and the manifest.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Weights = dict[str, torch.Tensor]


def cut_at_random(numel: int, pieces: int, seed: int) -> list[tuple[int, int]]:
    """Cut `numel` elements into runs at odd places, some of them empty."""
    cuts = sorted(random.Random(seed).randint(0, numel) for _ in range(pieces - 1))
    return list(zip([0, *cuts], [*cuts, numel], strict=True))


def write_state(
    folder: Path,
    trained: Weights,
    *,
    world_size: int = 2,
    frozen: Weights | None = None,
    buffers: Weights | None = None,
    shared: dict[str, str] | None = None,
    training_dtype: str = "bfloat16",
    moments: str = "adam",
    has_masters: bool = True,
    seed: int = 0,
) -> Path:
    """Write a `state/` folder.

    Args:
        folder: The step's folder.
        trained: fp32 master weights.
        world_size: Number of ranks.
        frozen: Parameters without a master, in their own formats.
        buffers: Kept whole by rank 0.
        shared: Another name -> the name of a parameter.
        training_dtype: What the forward pass computed in.
        moments: `adam` for fp32 moments, `8bit` for codes with their scales.
        has_masters: False: everything is `weight`, as in a run without an optimizer's copy.
        seed: Of the cuts.
    """
    frozen, buffers = frozen or {}, buffers or {}
    ranks: list[Weights] = [{} for _ in range(world_size)]
    starts: list[dict[str, int]] = [{} for _ in range(world_size)]
    kind = "master" if has_masters else "weight"
    for number, (name, value) in enumerate(trained.items()):
        kept = value if has_masters else value.to(getattr(torch, training_dtype))
        for rank, start, piece in _cut(kept, world_size, seed + number):
            for key, tensor in _keys(kind, name, piece, moments if has_masters else "none"):
                ranks[rank][key], starts[rank][key] = tensor, start
    for number, (name, value) in enumerate(frozen.items()):
        for rank, start, piece in _cut(value, world_size, seed + 1000 + number):
            ranks[rank][f"weight/{name}"], starts[rank][f"weight/{name}"] = piece, start
    for name, value in buffers.items():
        ranks[0][f"buffer/{name}"], starts[0][f"buffer/{name}"] = value.reshape(-1), 0
    if moments == "8bit":
        for tensors in ranks:
            tensors["absmax1/@0"], tensors["qmap1/@0"] = torch.ones(3), torch.zeros(256)
    state = folder / "state"
    state.mkdir(parents=True)
    for rank, tensors in enumerate(ranks):
        places = json.dumps({**dict.fromkeys(tensors, 0), **starts[rank]})
        facts = {"format": "bigft-state-1", "starts": places, "flats": "[]", "scalars": "[]"}
        save_file(tensors, state / f"rank_{rank:05d}.safetensors", facts)
    dtype = getattr(torch, training_dtype)
    parameters = {name: _describe(value.to(dtype)) for name, value in trained.items()}
    parameters |= {name: _describe(value) for name, value in frozen.items()}
    index = {
        "format": 1,
        "world_size": world_size,
        "parameters": parameters,
        "buffers": {name: _describe(value) for name, value in buffers.items()},
        "shared": shared or {},
        "training_dtype": training_dtype,
        "engine": {"counters": {"global_steps": 7}},
    }
    (state / "index.json").write_text(json.dumps(index))
    return state


def _cut(
    value: torch.Tensor, world_size: int, seed: int
) -> Iterator[tuple[int, int, torch.Tensor]]:
    flat = value.reshape(-1)
    owners = random.Random(seed).sample(range(world_size), world_size)
    for rank, (start, end) in zip(
        owners, cut_at_random(flat.numel(), world_size, seed), strict=True
    ):
        if end > start:
            yield rank, start, flat[start:end].clone()


def _keys(
    kind: str, name: str, piece: torch.Tensor, moments: str
) -> Iterator[tuple[str, torch.Tensor]]:
    yield f"{kind}/{name}", piece
    if moments == "adam":
        yield f"exp_avg/{name}", torch.full_like(piece, float("nan"))
        yield f"exp_avg_sq/{name}", torch.full_like(piece, float("nan"))
    elif moments == "8bit":
        for state in ("state1", "state2"):
            yield f"{state}/{name}", torch.full(piece.shape, 255, dtype=torch.uint8)


def _describe(value: torch.Tensor) -> dict[str, Any]:
    return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}

"""Runs without an export, and what their checkpoints hold."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any


def train(settings: dict[str, Any], folder: str, config: str) -> str:
    """Train inside the open process group; returns what was said."""
    import runs

    from bigft.commands.training import train as train_parts
    from bigft.log import Console

    resolved = runs._resolve(settings, folder, config)
    world = runs._world()
    Path(folder).mkdir(parents=True, exist_ok=True)
    err = io.StringIO()
    console = Console(io.StringIO(), err, is_rank_zero=world.is_rank_zero)
    train_parts(resolved, Path(folder), world, console)
    return err.getvalue()


def read_rows(folder: Path, first: int) -> list[dict[str, Any]]:
    """Read what `metrics.jsonl` says of the steps from `first` on, without what is measured."""
    names = ("step", "loss", "grad_norm", "learning_rate", "tokens", "epoch")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row and row["step"] >= first]
    return [{name: row.get(name) for name in names} for row in steps]


def digest_state(checkpoint: Path) -> dict[str, str]:
    """Digest every file of a checkpoint's state."""
    files = sorted((checkpoint / "state").iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_full(checkpoint: Path) -> dict[str, Any]:
    """Put every tensor of a checkpoint together, whatever ranks wrote it, padding left out."""
    import torch

    from bigft.checkpoint.state.index import read_index
    from bigft.checkpoint.state.read import StateReader

    index = read_index(checkpoint)
    found = {}
    with StateReader(checkpoint, index.world_size) as reader:
        for kind in ("master", *reader.kinds):
            for name, facts in index.parameters.items():
                whole = torch.zeros(int(torch.tensor(facts["shape"]).prod()))
                reader.fill(kind, name, 0, whole)
                found[f"{kind}/{name}"] = whole
    return found

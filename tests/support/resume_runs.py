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


def train_without(settings: dict[str, Any], folder: str, config: str, dropped: str) -> str:
    """Resume, but leave one part of the state out: a control that has to be noticed."""
    from unittest.mock import patch

    from bigft.checkpoint.state import load, numbers
    from bigft.trainer.state import State

    def keep_state(values: dict[str, Any]) -> Any:
        from bigft.data.order.cursor import Cursor

        state = original(values)
        state.cursor = Cursor()
        return state

    original = State.from_dict
    patches = {
        "moments": patch.object(load, "_restore_states", lambda *_: 2),
        "schedule": patch.object(numbers, "_restore_schedule", lambda *_: None),
        "cursor": patch.object(State, "from_dict", keep_state),
        "beta_powers": patch.object(numbers, "_replay_steps", lambda *_: None),
    }
    with patches[dropped]:
        return train(settings, folder, config)


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

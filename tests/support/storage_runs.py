"""Runs whose ranks have disks of their own, played by folders of one disk."""

from pathlib import Path
from typing import Any


def train_apart(
    settings: dict[str, Any], folder: str, config: str, disks: list[str] | None = None
) -> dict[str, Any]:
    """One whole run, export included; rank N writes below `folder/disks[N]`."""
    import io

    import runs
    import torch

    from bigft.checkpoint.recognise import find_storages
    from bigft.commands.training import export, source_at_rank_zero, train
    from bigft.errors import BigftError
    from bigft.log import Console

    world = runs._world()
    disks = disks or [f"disk{rank}" for rank in range(world.size)]
    here = Path(folder) / disks[world.rank] / "run"
    resolved = runs._resolve(settings, str(here), config)
    storages = find_storages(here, world.rank, world.size)
    err = io.StringIO()
    console = Console(io.StringIO(), err, is_rank_zero=world.is_rank_zero)
    try:
        finished = train(resolved, here, world, console, None, storages)
        with source_at_rank_zero(finished, world, storages) as source:
            if world.is_rank_zero:
                export(resolved, source, here / "model", console)
            torch.distributed.barrier()
    except BigftError as error:
        return {"error": str(error), "kind": type(error).__name__, "said": err.getvalue()}
    return {"checkpoint": str(finished), "said": err.getvalue(), "storages": storages.of_rank}


def find(folder: str, disks: list[str]) -> dict[str, Any]:
    """Find out which ranks share a folder, and say it as a run does."""
    import runs

    from bigft.checkpoint.recognise import find_storages
    from bigft.checkpoint.storages import describe_storages

    world = runs._world()
    here = Path(folder) / disks[world.rank]
    found = find_storages(here, world.rank, world.size)
    return {"numbers": found.of_rank, "said": describe_storages(found, here)}

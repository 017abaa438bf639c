"""Runs that are disturbed while they save."""

import resource
from typing import Any

import torch


def fail_in_assets(settings: dict[str, Any], folder: str, config: str, step: int) -> Any:
    """A run whose rank 0 finds the disk full when it writes the tokenizer of this step."""
    import runs

    from bigft.commands.parts.checkpoints import RunCheckpoints as Checkpoints

    write = Checkpoints._write_assets

    def fail(self: Any, target: Any) -> None:
        if f"step_{step:08d}" in str(target):
            raise OSError(28, "No space left on device")
        write(self, target)

    Checkpoints._write_assets = fail
    try:
        return runs.try_train(settings, folder, config)
    finally:
        Checkpoints._write_assets = write


def fail_in_state(settings: dict[str, Any], folder: str, config: str, rank: int) -> Any:
    """A run one of whose ranks may write only small files while it saves."""
    import runs

    from bigft.checkpoint import save

    write = save.write_state

    def write_limited(state: Any, file: Any) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if torch.distributed.get_rank() == rank:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
        try:
            write(state, file)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    save.write_state = write_limited
    try:
        return runs.try_train(settings, folder, config)
    finally:
        save.write_state = write

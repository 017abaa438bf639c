"""Runs that are disturbed while they save."""

import contextlib
import resource
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch


@contextlib.contextmanager
def full_disk_at(steps: list[int]) -> Iterator[None]:
    """Let rank 0 find the disk full when it writes the tokenizer of these steps."""
    from bigft.commands.parts.checkpoints import RunCheckpoints

    write = RunCheckpoints._write_assets

    def fail(self: Any, target: Any) -> None:
        if any(f"step_{step:08d}" in str(target) for step in steps):
            raise OSError(28, "No space left on device")
        write(self, target)

    with patch.object(RunCheckpoints, "_write_assets", fail):
        yield


def fail_in_assets(settings: dict[str, Any], folder: str, config: str, step: int) -> Any:
    """A run that must fail: the disk is full at the save of this step."""
    import runs

    with full_disk_at([step]):
        return runs.try_train(settings, folder, config)


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

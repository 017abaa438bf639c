"""The few collectives bigft uses itself; gradients and parameters are DeepSpeed's business."""

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from bigft.distributed.world import World
from bigft.errors import BigftError, LaunchError

_T = TypeVar("_T")


def barrier() -> None:
    """Wait until every rank is here. Collective: every rank."""
    torch.distributed.barrier()


def broadcast_object(value: _T, source: int = 0) -> _T:
    """Return rank `source`'s value on every rank. Collective: every rank."""
    box: list[_T] = [value]
    torch.distributed.broadcast_object_list(box, src=source)
    return box[0]


def gather_rows(row: list[float], device: torch.device) -> Tensor:
    """Stack one row of numbers per rank.

    Returns:
        fp64 tensor on CPU, `(world_size, len(row))`, in rank order.

    Collective: every rank.
    """
    mine = torch.tensor(row, dtype=torch.float64, device=device)
    rows = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(rows, mine)
    return torch.stack(rows).cpu()


def gather_table(rows: Tensor) -> Tensor:
    """Stack the rows of all ranks, in rank order.

    Args:
        rows: `(n, k)` on this rank's device; n may differ between ranks, k is that of every rank
            that has a row.

    Returns:
        `(sum of n, k)`, fp64 on the same device.

    Collective: every rank.
    """
    shapes = gather_rows([float(size) for size in rows.shape], rows.device).long()
    most, width = (int(size) for size in shapes.amax(0))
    mine = torch.zeros(most, width, dtype=torch.float64, device=rows.device)
    mine[: len(rows), : rows.shape[1]] = rows
    found = [torch.empty_like(mine) for _ in shapes]
    torch.distributed.all_gather(found, mine)
    lengths = shapes[:, 0].tolist()
    return torch.cat([table[:length] for table, length in zip(found, lengths, strict=True)])


def gather_objects(value: _T) -> list[_T]:
    """Return the values of all ranks, in rank order. Collective: every rank."""
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def gather_errors(problem: str | None) -> list[str | None]:
    """Return what is wrong on each rank, in rank order. Collective: every rank."""
    return gather_objects(problem)


def gather_on_first(value: _T) -> list[_T]:
    """Bring every rank's value to rank 0, in rank order; the others get nothing.

    Collective: every rank.
    """
    is_first = torch.distributed.get_rank() == 0
    found: list[Any] | None = [None] * torch.distributed.get_world_size() if is_first else None
    torch.distributed.gather_object(value, found, dst=0)
    return found or []


def raise_first(error: BigftError | None) -> None:
    """Raise the lowest rank's error on every rank, so that none is left waiting.

    Collective: every rank.
    """
    mine = None if error is None else (type(error), str(error))
    for rank, entry in enumerate(gather_objects(mine)):
        if entry is not None:
            kind, text = entry
            shared = kind(text if rank == 0 else f"rank {rank}: {text}")
            shared.is_shared = True
            raise shared


@contextlib.contextmanager
def errors_shared() -> Iterator[None]:
    """Run a block on every rank; if it fails on one, it fails on all with the same words.

    Collective: every rank.
    """
    error: BigftError | None = None
    try:
        yield
    except BigftError as caught:
        error = caught
    except OSError as caught:
        # A full or vanished disk on one host must not leave the others waiting.
        error = LaunchError(f"{caught.strerror or caught}: {caught.filename or 'no file named'}")
    raise_first(error)


@contextlib.contextmanager
def local_rank_zero_first(world: World) -> Iterator[None]:
    """Run a block on the first rank of each host before the others (compilers, caches).

    Collective: every rank.
    """
    if world.local_rank != 0:
        barrier()
    try:
        yield
    finally:
        if world.local_rank == 0:
            barrier()

"""The ranks of this run: who am I, on which device, opened once and closed once."""

import logging
import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch.distributed.rendezvous import rendezvous

from bigft.distributed.arrival import await_all
from bigft.distributed.failures import find_failure
from bigft.distributed.lookout.limits import Limits
from bigft.distributed.starters import be_alone, complete_environment
from bigft.errors import LaunchError

logger = logging.getLogger(__name__)

# Loading a large model, tokenising and saving happen between collectives; the stock 10 minutes
# of NCCL kill runs that only wait for a disk. DeepSpeed's own variable, in minutes, changes it.
_COLLECTIVE_SECONDS = 120 * 60

# The limits of the lookout speak with names and places, a collective only of itself: they come
# first.
_LATER = 1.5


@dataclass(frozen=True)
class World:
    """This process's place among all processes of the run."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process speaks for the run."""
        return self.rank == 0


def open_world(limits: Limits | None = None) -> World:
    """Join the process group that the launcher describes, or open one of a single process.

    Args:
        limits: How long the ranks wait for each other here, and what collectives outlast.

    Raises:
        LaunchError: The launcher's variables are incomplete, or the ranks do not meet.

    Collective: every rank.
    """
    complete_environment(os.environ)
    if "RANK" not in os.environ:
        be_alone(os.environ)
    _put_interpreter_on_path()
    local_rank = int(os.environ["LOCAL_RANK"])
    device = _pick_device(local_rank)
    backend = (
        "nccl"
        if device.type == "cuda"
        else torch.distributed.get_default_backend_for_device(device)
    )
    limits = limits or Limits()
    limit = timedelta(seconds=_find_limit(limits))
    patience = limits.startup or limit.total_seconds()
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=patience)))
        await_all(store, rank, size, patience)
        torch.distributed.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=size,
            timeout=limit,
            device_id=None if device.type == "cpu" else device,
        )
    except (RuntimeError, ValueError) as error:
        failure = find_failure(f"{type(error).__name__}: {error}")
        repair = failure.repair if failure else "Check that all ranks were started"
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise LaunchError(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} could not join the others at"
            f" {address} ({str(error).splitlines()[0]}). {repair}"
        ) from error
    return World(
        rank=torch.distributed.get_rank(),
        size=torch.distributed.get_world_size(),
        local_rank=local_rank,
        local_size=int(os.environ["LOCAL_SIZE"]),
        device=device,
    )


def _find_limit(limits: Limits) -> float:
    """Return the time limit of collectives, in seconds.

    Raises:
        LaunchError: DEEPSPEED_TIMEOUT is no number.
    """
    minutes = os.environ.get("DEEPSPEED_TIMEOUT")
    if minutes is None:
        return max(_COLLECTIVE_SECONDS, _LATER * limits.longest)
    if not (minutes.isascii() and minutes.isdigit() and int(minutes)):
        raise LaunchError(f"DEEPSPEED_TIMEOUT={minutes}: must be whole minutes; unset it for 120")
    if 60 * int(minutes) <= limits.longest:
        logger.warning(
            "DEEPSPEED_TIMEOUT=%s minutes end a collective before the longest limit of --watch (%s"
            " s) can say which rank did not come",
            minutes,
            limits.longest,
        )
    return 60.0 * int(minutes)


def close_world() -> None:
    """Leave the process group; without it gloo's threads abort the interpreter at its end."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _put_interpreter_on_path() -> None:
    # DeepSpeed builds its operators with `ninja`, which pip puts beside the interpreter; that
    # folder is not on PATH when bigft is called by its full path. It comes first, as where the
    # environment is activated: another version of ninja finds all cached builds out of date, and
    # builds everything anew at every change between the two.
    folder = str(Path(sys.executable).parent)
    parts = [part for part in os.environ.get("PATH", "").split(os.pathsep) if part != folder]
    os.environ["PATH"] = os.pathsep.join([folder, *parts])


def _pick_device(local_rank: int) -> torch.device:
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.accelerator.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
        return torch.device("cpu")
    count = torch.accelerator.device_count()
    if local_rank >= count:
        raise LaunchError(
            f"local rank {local_rank} has no device: {count} can be seen here; start with"
            f" `deepspeed --num_gpus {count}`, or let every rank see all devices of its host"
            " (Slurm: `--gpus-per-node` with `srun --gpu-bind=none`)"
        )
    torch.accelerator.set_device_index(local_rank)
    kind = torch.accelerator.current_accelerator()
    return torch.device(kind.type if kind else "cpu", local_rank)

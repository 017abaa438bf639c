"""Find out which ranks share a folder: by a file, never by the names of hosts.

rank 0             makes .storage-<token>.0
who sees it not    makes .storage-<token>.<rank>, and looks for that of the lowest rank
"""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from bigft.checkpoint.storages import Storages
from bigft.distributed.collectives import broadcast_object, errors_shared, gather_objects
from bigft.distributed.processes import name_host
from bigft.errors import ConfigError

_TOKEN = ".storage-"


def find_storages(folder: Path, rank: int, world_size: int) -> Storages:
    """Find out which ranks see the same folder; it is made where it is missing.

    Raises:
        ConfigError: It cannot be written on some host.

    Collective: every rank.
    """
    hosts = tuple(gather_objects(name_host()))
    if world_size == 1:
        return Storages((0,), hosts)
    token = broadcast_object(uuid.uuid4().hex[:12])
    first = _name(folder, token, 0)
    with errors_shared(), _explained(folder):
        if rank == 0:
            _leave_token(folder, token, rank)
    try:
        with errors_shared(), _explained(folder):
            sees_it = rank == 0 or first.exists()
        seen = gather_objects(sees_it)
        lost = [other for other, is_there in enumerate(seen) if not is_there]
        with errors_shared(), _explained(folder):
            if rank in lost:
                # Also renews what a network file system believes about a folder just made.
                _leave_token(folder, token, rank)
        lowest = 0
        with errors_shared(), _explained(folder):
            if rank in lost:
                lowest = next(one for one in [0, *lost] if _name(folder, token, one).exists())
        places = gather_objects(lowest)
    finally:
        with contextlib.suppress(OSError):
            _name(folder, token, rank).unlink()
    numbers = {place: number for number, place in enumerate(sorted(set(places)))}
    return Storages(tuple(numbers[place] for place in places), hosts)


def _leave_token(folder: Path, token: str, rank: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.glob(f"{_TOKEN}*"):
        # Of a start that was killed at this.
        if not other.name.startswith(f"{_TOKEN}{token}."):
            other.unlink(missing_ok=True)
    _name(folder, token, rank).touch()


def _name(folder: Path, token: str, rank: int) -> Path:
    return folder / f"{_TOKEN}{token}.{rank}"


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"--output_dir {folder}: cannot be written on {name_host()}"
            f" ({error.strerror}); choose another folder"
        ) from error

"""Bring files of a checkpoint to the storages that lack them, for as long as they are needed.

    resume    index and headers of all ranks' files, then those files that the ranks here read from
    export    the weights of all ranks' files, to rank 0's storage

They lie in `.tmp-brought-<id>` beside the checkpoints: what a crash leaves there the next start
removes.
"""

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigft.checkpoint.files import FileRecord
from bigft.checkpoint.folder import make_durably, remove
from bigft.checkpoint.manifest import list_files
from bigft.checkpoint.resume_apart import Resumed
from bigft.checkpoint.slim import SlimFile, measure_slim
from bigft.checkpoint.source import Source
from bigft.checkpoint.state.file import HEADER_SUFFIX
from bigft.checkpoint.state.index import INDEX_NAME, read_index
from bigft.checkpoint.state.needs import find_needed
from bigft.checkpoint.state.read import StateReader
from bigft.checkpoint.state.write import file_name
from bigft.checkpoint.storages import Storages
from bigft.checkpoint.transfer import Shipment, ship
from bigft.distributed.collectives import broadcast_object, errors_shared, gather_objects
from bigft.errors import CheckpointError
from bigft.files.safetensors_header import measure_header
from bigft.units import format_bytes

_SPARE = 64 << 20
"""Bytes that are left free."""


@contextlib.contextmanager
def state_brought(
    engine: Any, resumed: Resumed, storages: Storages, rank: int, checkpoints: Path
) -> Iterator[Path | None]:
    """Have everything in reach that this rank reads of a checkpoint when it resumes from it.

    Args:
        engine: The DeepSpeed engine that is to be filled.
        resumed: The checkpoint.
        storages: Of the run folder.
        rank: Of this process.
        checkpoints: The run's folder, for what is brought.

    Yields:
        The folder with what the checkpoint lacks here; None: it lacks nothing.

    Raises:
        CheckpointError: There is no room, or a file could not be sent.

    Collective: every rank.
    Memory: 16 MiB.
    """
    records = {one.path: one for one in list_files(resumed.manifest)}
    ranks = {name: one for one in range(len(records)) if (name := file_name(one)) in records}
    if all(set(held) >= {INDEX_NAME, *ranks} for held in resumed.held):
        yield None
        return
    with _folder_made(checkpoints, storages, rank) as beside:
        bringer = _Bringer(resumed, storages, rank, beside)
        bringer.bring_headers(records, list(ranks))
        index = read_index(resumed.folder, beside)
        with StateReader(resumed.folder, index.world_size, beside) as reader:
            needed = {file_name(one) for one in find_needed(engine, reader)}
        bringer.bring_files(records, needed)
        yield beside


@contextlib.contextmanager
def weights_brought(
    resumed: Resumed, storages: Storages, rank: int, checkpoints: Path
) -> Iterator[Source]:
    """Have the weights of a checkpoint at rank 0's storage, to make a model of them there.

    Of the ranks' files only the weights are sent, not the optimizer's states. Rank 0 may use and
    leave this without the others.

    Args:
        resumed: The checkpoint, and who has which file.
        storages: Of the run folder.
        rank: Of this process.
        checkpoints: The run's folder.

    Raises:
        CheckpointError: There is no room, or a file could not be sent.

    Collective: every rank, up to the beginning of the block.
    Memory: 16 MiB.
    """
    name = broadcast_object(f".tmp-brought-{uuid.uuid4().hex[:8]}")
    beside = checkpoints / name
    try:
        bringer = _Bringer(resumed, storages, rank, beside)
        with errors_shared():
            if rank == 0:
                beside.mkdir()
        bringer.bring_weights()
        yield Source(
            beside / "state", beside / "hf", resumed.manifest, name=str(resumed.folder / "state")
        )
    finally:
        if rank == 0:
            remove(beside)


@contextlib.contextmanager
def _folder_made(checkpoints: Path, storages: Storages, rank: int) -> Iterator[Path]:
    beside = checkpoints / broadcast_object(f".tmp-brought-{uuid.uuid4().hex[:8]}")
    leads = storages.leads(rank)
    try:
        with errors_shared():
            if leads:
                make_durably(checkpoints)
                beside.mkdir()
        yield beside
        # The others may still read.
        gather_objects(None)
    finally:
        if leads:
            remove(beside)


class _Bringer:
    """Knows who has which file. Every method is collective."""

    def __init__(self, resumed: Resumed, storages: Storages, rank: int, beside: Path) -> None:
        self._resumed = resumed
        self._storages = storages
        self._rank = rank
        self._mine = storages.of_rank[rank]
        self._beside = beside

    def bring_headers(self, records: Mapping[str, FileRecord], names: Sequence[str]) -> None:
        """Bring the index, and the headers of the ranks' files, to every storage without them."""
        sizes = self._measure(names, measure_header)
        wanted = [(INDEX_NAME, n, records[INDEX_NAME].size) for n in self._lacking(INDEX_NAME)]
        wanted += [(name, n, sizes[name]) for name in names for n in self._lacking(name)]
        shipments = [
            Shipment(
                name if name == INDEX_NAME else f"{name}{HEADER_SUFFIX}",
                size,
                self._find_source(name, target),
                target,
            )
            for name, target, size in wanted
        ]
        self._ship(shipments)

    def bring_files(self, records: Mapping[str, FileRecord], needed: set[str]) -> None:
        """Bring whole files to the storages whose ranks need and lack them."""
        wanted = sorted(
            {
                (name, number)
                for number, names in zip(
                    self._storages.of_rank, gather_objects(needed), strict=True
                )
                for name in names - self._resumed.held[number]
            }
        )
        self._ship(
            [
                Shipment(
                    name,
                    records[name].size,
                    self._find_source(name, target),
                    target,
                    records[name].sha256,
                )
                for name, target in wanted
            ]
        )

    def bring_weights(self) -> None:
        """Bring everything that an export needs to the first storage; what is there is linked."""
        records = {one.path: one for one in list_files(self._resumed.manifest)}
        lacked = [name for name in records if 0 in self._lacking(name)]
        ranks = [name for name in lacked if _is_rank_file(name)]
        sizes = self._measure(ranks, measure_slim)
        self._ship(
            [
                Shipment(name, sizes[name], self._find_source(name, 0), 0)
                if name in sizes
                else Shipment(
                    name, records[name].size, self._find_source(name, 0), 0, records[name].sha256
                )
                for name in lacked
            ],
            is_slim=True,
        )
        with errors_shared():
            if self._rank == 0:
                for name in records:
                    if name not in lacked:
                        _link(self._resumed.folder / name, self._beside / name)

    def _lacking(self, name: str) -> list[int]:
        return [n for n, held in enumerate(self._resumed.held) if name not in held]

    def _find_source(self, name: str, target: int) -> int:
        """Choose who sends: of several the next one, so that not all ask the same."""
        have = [n for n, held in enumerate(self._resumed.held) if name in held]
        return have[target % len(have)]

    def _measure(self, names: Sequence[str], measure: Callable[[Path], int]) -> dict[str, int]:
        """Find the sizes of what is sent, each where the file is."""
        found: dict[str, int] = {}
        with errors_shared():
            if self._storages.leads(self._rank):
                held = self._resumed.held[self._mine]
                found = {n: measure(self._resumed.folder / n) for n in names if n in held}
        return {name: size for one in gather_objects(found) for name, size in one.items()}

    def _ship(self, shipments: Sequence[Shipment], *, is_slim: bool = False) -> None:
        coming = sum(one.size for one in shipments if one.target == self._mine)
        with errors_shared():
            if coming and self._storages.leads(self._rank):
                _check_room(self._beside, coming)

        def open_source(one: Shipment) -> Any:
            path = self._resumed.folder / one.name.removesuffix(HEADER_SUFFIX)
            if is_slim and _is_rank_file(one.name):
                return SlimFile(path)
            return path.open("rb", buffering=0)

        ship(shipments, self._storages, self._rank, self._beside, open_source)


def _is_rank_file(name: str) -> bool:
    return name.startswith("state/rank_")


def _check_room(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if num_bytes + _SPARE > free:
        raise CheckpointError(
            f"{folder.parent}: {format_bytes(free)} free, {format_bytes(num_bytes)} of files of the"
            " checkpoint come from other hosts for a while; free some space there"
        )


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

"""Send files from ranks to ranks through the process group, in pieces and compared at the end.

Whatever goes wrong with a file on one side, both go on to its end, so that no rank is left waiting;
the error is raised on all ranks afterwards.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from bigft.checkpoint.storages import Storages
from bigft.distributed.collectives import raise_first
from bigft.errors import BigftError, CheckpointError, LaunchError

_PIECE_BYTES = 16 << 20
_DIGEST_BYTES = 32
_TIMEOUT = timedelta(hours=2)


class Source(Protocol):
    """What is sent, front to back."""

    def readinto(self, view: Any, /) -> int | None:
        """Fill some of a buffer; 0 at the end."""

    def close(self) -> None:
        """Let go of it."""


@dataclass(frozen=True)
class Shipment:
    """One file on its way."""

    name: str
    """Place below the receiver's folder."""
    size: int
    source: int
    """Number of the storage whose first rank sends it."""
    target: int
    sha256: str = ""
    """Of the whole, where somebody knows it beforehand."""


def ship(
    shipments: Sequence[Shipment],
    storages: Storages,
    rank: int,
    folder: Path,
    open_source: Callable[[Shipment], Source],
) -> None:
    """Send every file; those for this rank's storage lie in `folder` afterwards.

    Args:
        shipments: The same on every rank.
        storages: Their first ranks send and receive.
        rank: Of this process.
        folder: Of this storage; it exists where something is received.
        open_source: Opens on the sender what is sent.

    Raises:
        CheckpointError: A file could not be read or written, or arrived as another one.
        LaunchError: A rank has gone.

    Collective: every rank.
    Memory: 16 MiB.
    """
    if not shipments:
        return
    group = torch.distributed.new_group(list(storages.leaders), timeout=_TIMEOUT, backend="gloo")
    problems: list[str] = []
    if storages.leads(rank):
        mine = storages.of_rank[rank]
        piece = torch.empty(_PIECE_BYTES, dtype=torch.uint8)
        try:
            for one in sorted(shipments, key=lambda one: _order(one, storages.count)):
                if one.source == mine:
                    problems += _send(one, open_source, _Link(group, storages, one.target), piece)
                elif one.target == mine:
                    problems += _receive(one, folder, _Link(group, storages, one.source), piece)
        except RuntimeError as error:
            raise LaunchError(
                f"files of the checkpoint could not be sent ({str(error).splitlines()[0]}); a rank"
                " or the network has failed, see the other ranks' logs"
            ) from error
        finally:
            with contextlib.suppress(RuntimeError):
                torch.distributed.destroy_process_group(group)
    raise_first(CheckpointError("; ".join(problems)) if problems else None)


def _order(one: Shipment, count: int) -> tuple[int, int, str]:
    # Pairs at the same distance are apart from each other and send at the same time.
    return (one.target - one.source) % count, one.source, one.name


class _Link:
    """The way to another storage's first rank."""

    def __init__(self, group: Any, storages: Storages, number: int) -> None:
        self._group = group
        self._rank = storages.leaders[number]

    def send(self, piece: Tensor) -> None:
        torch.distributed.send(piece, self._rank, group=self._group)

    def receive(self, piece: Tensor) -> None:
        torch.distributed.recv(piece, self._rank, group=self._group)


def _send(
    one: Shipment, open_source: Callable[[Shipment], Source], link: _Link, piece: Tensor
) -> list[str]:
    problem, source = "", None
    try:
        source = open_source(one)
    except (OSError, BigftError) as error:
        problem = f"{one.name}: cannot be read ({error})"
    digest = hashlib.sha256()
    for begin in range(0, one.size, _PIECE_BYTES):
        part = piece[: min(_PIECE_BYTES, one.size - begin)]
        if source is not None and not problem:
            problem = _fill(source, part, one)
            digest.update(part.numpy().data)
        link.send(part)
    if source is not None:
        source.close()
    # Nothing has zeros for a digest: the receiver drops what could not be read.
    found = bytes(_DIGEST_BYTES) if problem else digest.digest()
    link.send(torch.frombuffer(bytearray(found), dtype=torch.uint8))
    return [problem] if problem else []


def _fill(source: Source, part: Tensor, one: Shipment) -> str:
    view = part.numpy().data
    try:
        while view:
            count = source.readinto(view)
            if not count:
                return f"{one.name}: ends before its {one.size:,} bytes"
            view = view[count:]
    except OSError as error:
        return f"{one.name}: cannot be read ({error})"
    return ""


def _receive(one: Shipment, folder: Path, link: _Link, piece: Tensor) -> list[str]:
    path, problem = folder / one.name, ""
    descriptor = -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:
        problem = f"{path}: {error.strerror}"
    digest = hashlib.sha256()
    for begin in range(0, one.size, _PIECE_BYTES):
        part = piece[: min(_PIECE_BYTES, one.size - begin)]
        link.receive(part)
        view = part.numpy().data
        digest.update(view)
        try:
            while view and not problem:
                view = view[os.write(descriptor, view) :]
        except OSError as error:
            problem = f"{path}: {error.strerror}"
    if descriptor >= 0:
        os.close(descriptor)
    sent = torch.empty(_DIGEST_BYTES, dtype=torch.uint8)
    link.receive(sent)
    found = digest.digest()
    is_sent = bytes(sent.tolist())
    if not any(is_sent):
        return []  # The sender says why.
    if not problem and (is_sent != found or one.sha256 not in ("", found.hex())):
        problem = f"{path}: arrived as another file than the manifest's; check disk and network"
    return [problem] if problem else []

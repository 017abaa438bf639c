"""Fragments of parameters, put together again from the files of any number of ranks."""

import functools
import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigft.checkpoint.state.collect import (
    BUFFER,
    CODES,
    MASTER,
    PLAIN,
    REST,
    SCALES,
    SHADOW,
    UPPER,
    WEIGHT,
)
from bigft.checkpoint.state.file import HEADER_SUFFIX, StateFile
from bigft.checkpoint.state.write import FORMAT, file_name
from bigft.errors import CheckpointError
from bigft.optim.code8 import BLOCK, signed_code, unsigned_code
from bigft.optim.reference import join

# Elements read at once: what a fill holds beside its target.
_CHUNK = 4 << 20
_NO_STATES = (MASTER, SHADOW, WEIGHT, BUFFER, UPPER, REST, *SCALES)


@dataclass(frozen=True)
class Piece:
    """Elements `[start, end)` of a parameter, in the file of a rank."""

    start: int
    end: int
    rank: int


@dataclass(frozen=True)
class _Quantised:
    """Where the codes of a fragment stand in the flat vector whose scales they share."""

    number: int
    offset: int


class StateReader:
    """Reads any element range of any parameter from a checkpoint's rank files.

    Used as a context manager; the files stay open inside.
    """

    def __init__(self, checkpoint: Path, world_size: int, beside: Path | None = None) -> None:
        """Read all headers.

        Args:
            checkpoint: A committed checkpoint folder.
            world_size: Number of ranks that wrote it.
            beside: Folder with files that the checkpoint lacks here, or with their headers alone.

        Raises:
            CheckpointError: A file is missing or damaged.
        """
        self._stack = ExitStack()
        self._checkpoint = checkpoint
        self._beside = beside
        self._files: list[StateFile] = []
        self._pieces: dict[str, list[Piece]] = defaultdict(list)
        self.flats: list[list[Any]] = []
        """Per rank: the layout of its vectors."""
        self.scalars: list[list[dict[str, float]]] = []
        for rank in range(world_size):
            self._open(rank)
        for pieces in self._pieces.values():
            pieces.sort(key=lambda piece: piece.start)

    def __enter__(self) -> "StateReader":
        """Keep the files open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close them."""
        self._stack.close()

    def _open(self, rank: int) -> None:
        path = self._checkpoint / file_name(rank)
        if self._beside is not None and not path.exists():
            path = self._beside / file_name(rank)
        try:
            file = self._stack.enter_context(_open_file(path))
            facts = file.metadata
            if facts.get("format") != FORMAT:
                raise CheckpointError(f"{path}: no state of bigft; use another checkpoint")
            starts = json.loads(facts["starts"])
            self.flats.append(json.loads(facts["flats"]))
            self.scalars.append(json.loads(facts["scalars"]))
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); use another one") from error
        self._files.append(file)
        for key in file.keys():  # noqa: SIM118 - no mapping
            if "/@" not in key:
                self._pieces[key].append(Piece(starts[key], starts[key] + file.numel(key), rank))

    def find_ranks(self, name: str, start: int, end: int) -> set[int]:
        """Return the ranks whose files hold anything of these elements of a parameter."""
        return {
            piece.rank
            for kind in self._element_kinds
            for piece in self._find(kind, name, start, end)
        }

    @functools.cached_property
    def _element_kinds(self) -> set[str]:
        # Scales count blocks; they lie in the file of their codes.
        return {key.partition("/")[0] for key in self._pieces} - {*SCALES}

    @property
    def kinds(self) -> list[str]:
        """Kinds of element-wise optimizer states that there are: `exp_avg`, `state1`, ..."""
        found = dict.fromkeys(key.partition("/")[0] for key in self._pieces)
        return [kind for kind in found if kind not in _NO_STATES]

    @property
    def has_vectors(self) -> bool:
        """Whether scales belong to whole vectors, as bitsandbytes has them."""
        return not any(key.startswith(f"{SCALES[0]}/") for key in self._pieces)

    def find_step(self) -> int:
        """Return the optimizer's own count; 0 if no step has gone through."""
        found = next((s for rank in self.scalars for s in rank if "step" in s), {})
        return int(found.get("step", 0))

    def has(self, kind: str, name: str) -> bool:
        """Whether there is anything of this kind for this parameter."""
        return f"{kind}/{name}" in self._pieces

    def find_rest_dtype(self, name: str) -> torch.dtype:
        """Return the format of what is missing in a parameter's bf16 weights: int16 or int8."""
        piece = self._pieces[f"{REST}/{name}"][0]
        return self._files[piece.rank].dtype(f"{REST}/{name}")

    def list_pieces(self, kind: str, name: str) -> list[Piece]:
        """Return the pieces of a parameter, in order."""
        return list(self._pieces.get(f"{kind}/{name}", ()))

    def read_codes(
        self, number: int, name: str, piece: Piece, place: slice
    ) -> tuple[Tensor, Tensor]:
        """Read 8-bit codes of a piece, `(n,)`, and the scales of all its blocks.

        Args:
            number: 0 for first, 1 for second moments, as a `HostAdamW` saves them.
            name: The parameter.
            piece: One of `list_pieces`.
            place: Which of its elements.

        Raises:
            CheckpointError: There are no scales.
        """
        key = f"{CODES[number]}/{name}"
        codes = self._files[piece.rank].read(key, place.start, place.stop)
        return codes, self._read_scales(CODES[number], name, piece)

    def fill(self, kind: str, name: str, start: int, out: Tensor) -> None:
        """Copy elements `[start, start + len(out))` of a flattened parameter into `out`, `(n,)`.

        8-bit codes become the numbers that they stand for if `out` is a floating point tensor, and
        weights that are there in two become one. Moments are found under the names of every
        optimizer.

        Raises:
            CheckpointError: An element is in no file.
        """
        if kind == MASTER and not self.has(kind, name) and self.has(UPPER, name):
            self._join(name, start, out)
            return
        kind = self._resolve(kind, name)
        position, end = start, start + out.numel()
        for piece in self._find(kind, name, start, end):
            if piece.start > position:
                break
            stop = min(piece.end, end)
            for low in range(position, stop, _CHUNK):
                high = min(low + _CHUNK, stop)
                values = self._read(kind, name, piece, low, high, decode=out.is_floating_point())
                out[low - start : high - start].copy_(values)
            position = stop
        if position < end:
            raise CheckpointError(
                f"{self._checkpoint}: {kind} of {name} lacks elements {position:,} to {end:,};"
                " use another checkpoint"
            )

    def _resolve(self, kind: str, name: str) -> str:
        """Moments are codes in one optimizer and numbers in another."""
        if not self.has(kind, name):
            for one, other in zip(CODES, PLAIN, strict=True):
                if kind in (one, other):
                    return other if kind == one else one
        return kind

    def _join(self, name: str, start: int, out: Tensor) -> None:
        for low in range(0, out.numel(), _CHUNK):
            part = out[low : low + _CHUNK]
            upper = torch.empty(part.numel(), dtype=torch.bfloat16)
            rest = torch.empty(part.numel(), dtype=self.find_rest_dtype(name))
            self.fill(UPPER, name, start + low, upper)
            self.fill(REST, name, start + low, rest)
            halves = upper.view(torch.int16).numpy().view(np.uint16), rest.numpy()
            part.copy_(torch.from_numpy(join(*halves)))

    def read_whole(self, rank: int, kind: str, number: int) -> Tensor | None:
        """Read what belongs to flat vector `number` of a rank as a whole, if there is any."""
        key = f"{kind}/@{number}"
        file = self._files[rank]
        return file.read(key) if file.has(key) else None

    def list_whole(self, rank: int, number: int) -> dict[str, Tensor]:
        """Read everything that belongs to flat vector `number` of a rank as a whole."""
        file = self._files[rank]
        keys = [key for key in file.keys() if key.endswith(f"/@{number}")]  # noqa: SIM118
        return {key.partition("/")[0]: file.read(key) for key in keys}

    def _find(self, kind: str, name: str, start: int, end: int) -> Iterator[Piece]:
        pieces = self._pieces.get(f"{kind}/{name}", [])
        first = max(0, bisect_right(pieces, start, key=lambda piece: piece.start) - 1)
        for piece in pieces[first:]:
            if piece.start >= end:
                return
            if piece.end > start:
                yield piece

    def _read(
        self, kind: str, name: str, piece: Piece, low: int, high: int, *, decode: bool
    ) -> Tensor:
        place = slice(low - piece.start, high - piece.start)
        values = self._files[piece.rank].read(f"{kind}/{name}", place.start, place.stop)
        if not decode or values.dtype != torch.uint8:
            return values
        if f"{SCALES[0]}/{name}" in self._pieces:
            return self._decode_host(kind, name, piece, place, values)
        at = self._locate(piece.rank, name, piece.start)
        scales = self._need(piece.rank, kind.replace("state", "absmax"), at.number)
        table = self._need(piece.rank, kind.replace("state", "qmap"), at.number)
        first = at.offset + place.start
        blocks = torch.arange(first, first + values.numel()) // BLOCK
        return table[values.long()] * scales[blocks]

    def _decode_host(
        self, kind: str, name: str, piece: Piece, place: slice, values: Tensor
    ) -> Tensor:
        code = signed_code() if kind == CODES[0] else unsigned_code()
        first = piece.start + place.start
        blocks = torch.arange(first, first + values.numel()) // BLOCK - piece.start // BLOCK
        scales = self._read_scales(kind, name, piece)
        return torch.from_numpy(code.values)[values.long()] * scales[blocks]

    def _read_scales(self, kind: str, name: str, piece: Piece) -> Tensor:
        key = f"{SCALES[CODES.index(kind)]}/{name}"
        blocks = -(-piece.end // BLOCK) - piece.start // BLOCK
        file = self._files[piece.rank]
        if not file.has(key) or file.numel(key) != blocks:
            raise CheckpointError(
                f"{self._checkpoint / file_name(piece.rank)}: {key} does not fit its codes; the"
                " file is damaged. Use another checkpoint"
            )
        return file.read(key)

    def _locate(self, rank: int, name: str, start: int) -> _Quantised:
        for number, (_, fragments) in enumerate(self.flats[rank]):
            for parameter, first, _, offset in fragments:
                if parameter == name and first == start:
                    return _Quantised(number, offset)
        raise CheckpointError(f"{self._checkpoint}: rank {rank} has no place for {name}")

    def _need(self, rank: int, kind: str, number: int) -> Tensor:
        found = self.read_whole(rank, kind, number)
        if found is None:
            raise CheckpointError(
                f"{self._checkpoint / file_name(rank)}: lacks {kind} of vector {number}; the file"
                " is damaged. Use another checkpoint"
            )
        return found


def _open_file(path: Path) -> StateFile:
    header = path.with_name(f"{path.name}{HEADER_SUFFIX}")
    is_header = not path.exists() and header.exists()
    return StateFile(header, is_header=True) if is_header else StateFile(path)

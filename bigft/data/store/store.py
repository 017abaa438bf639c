"""Tokenised rows on disk, memory-mapped, written once per combination of data and settings.

<cache>/tokens/<digest>/
  tokens.npy       int32, all rows one after the other
  supervised.npy   bool, the same length
  offsets.npy      int64, (rows + 1,): where each row starts
  learned.npy      int32, (rows,): supervised tokens per row
  digests.npy      uint64, (rows,): a hash of the example that the row comes from
  pieces.npy       int32, (rows,): which piece of that example, where it was split
  origins.npy      int64, (rows, 2): a line of origins.txt, and the number behind it (-1: none)
  origins.txt      JSON strings, one per line: what the raw rows' places begin with
  signatures.npy   uint32, (rows, 64): only where near duplicates are looked for
  rejected.jsonl   raw rows that became no tokens, and why
  info.json        counts
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bigft.data.store.rejected import Rejected, dump_rejected
from bigft.data.tokens.tokenize import Row
from bigft.errors import DataError

SIGNATURE_SIZE = 64


@dataclass
class StoreInfo:
    """What was counted while the rows were written."""

    formats: dict[str, int] = field(default_factory=dict)
    """Records per format."""

    records: int = 0
    """Rows of the source, whatever became of them."""

    rows: int = 0
    """Rows of tokens."""

    bad_rows: int = 0
    """Records that could not be read."""

    unsupervised_rows: int = 0
    """Records and their copies without a supervised token; they are left out."""

    unsupervised_pieces: int = 0
    """Pieces of split examples without a supervised token; they are left out."""

    tokens: int = 0
    supervised_tokens: int = 0
    overlong_rows: int = 0
    """Examples longer than a sequence, whatever became of them."""

    truncated_rows: int = 0
    split_rows: int = 0
    """Examples that became more than one row."""

    conversations: int = 0
    """Examples that were rendered with a chat template."""

    touched: dict[str, int] = field(default_factory=dict)
    """Rows that each step of the cleaning changed or left out."""

    content: str = ""
    """Digest of the rows themselves, the same on every machine."""

    def add(self, other: "StoreInfo") -> None:
        """Add the counts of another part of the same data."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(value, int):
                setattr(self, name, mine + value)
            elif isinstance(value, dict):
                for key, count in value.items():
                    mine[key] = mine.get(key, 0) + count


@dataclass(frozen=True)
class Chunk:
    """The rows that some records became, ready to be written."""

    tokens: npt.NDArray[np.int32]
    """All rows one after the other."""

    supervised: npt.NDArray[np.bool_]
    lengths: npt.NDArray[np.int64]
    """`(rows,)`."""

    learned: npt.NDArray[np.int32]
    """`(rows,)`, supervised tokens."""

    digests: npt.NDArray[np.uint64]
    pieces: npt.NDArray[np.int32]
    """`(rows,)`, number of the piece of its example, 0 for the first."""

    origins: list[str]
    """Of each row, where its raw row stands: `a.jsonl:3`."""

    signatures: npt.NDArray[np.uint32] | None
    """`(rows, 64)`."""

    rejected: list[Rejected]
    info: StoreInfo


class TokenStore:
    """Rows of tokens in a folder, mapped and not read."""

    def __init__(self, folder: Path) -> None:
        """Map the arrays of a complete folder.

        Raises:
            DataError: The folder is damaged.
        """
        self.folder = folder
        try:
            self.info = StoreInfo(**json.loads((folder / "info.json").read_text()))
            self._tokens = np.load(folder / "tokens.npy", mmap_mode="r")
            self._supervised = np.load(folder / "supervised.npy", mmap_mode="r")
            self._offsets: npt.NDArray[np.int64] = np.load(folder / "offsets.npy", mmap_mode="r")
            self.supervised_counts: npt.NDArray[np.int32] = np.load(
                folder / "learned.npy", mmap_mode="r"
            )
            self.digests: npt.NDArray[np.uint64] = np.load(folder / "digests.npy", mmap_mode="r")
            self.pieces: npt.NDArray[np.int32] = np.load(folder / "pieces.npy", mmap_mode="r")
        except (OSError, EOFError, ValueError, TypeError) as error:
            raise DataError(
                f"the tokenised data in {folder} are damaged ({error}); delete this folder, and "
                "they are made again"
            ) from error

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens per row, `(rows,)`."""
        return np.diff(self._offsets)

    @property
    def signatures(self) -> npt.NDArray[np.uint32]:
        """MinHash signatures, `(rows, 64)`; only where near duplicates are looked for."""
        found: npt.NDArray[np.uint32] = np.load(self.folder / "signatures.npy", mmap_mode="r")
        return found

    @property
    def rejected_file(self) -> Path:
        """One JSON object per raw row that became no tokens: `origin`, `reason`, `row`."""
        return self.folder / "rejected.jsonl"

    def load_origins(self, numbers: Iterable[int]) -> list[str]:
        """Say where the raw rows of some rows stand, as `a.jsonl:3`; for messages, reads files."""
        places, texts = self._origins
        found = (places[number].tolist() for number in numbers)
        return [texts[text] + (str(place) if place >= 0 else "") for text, place in found]

    @cached_property
    def _origins(self) -> tuple[npt.NDArray[np.int64], list[str]]:
        lines = (self.folder / "origins.txt").read_text(encoding="utf-8").splitlines()
        return np.load(self.folder / "origins.npy", mmap_mode="r"), [*map(json.loads, lines)]

    def compute_digest(self) -> str:
        """Compute a digest of all tokens and marks, the same on every machine; reads the files."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self._tokens, self._supervised, self._offsets):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def load_row(self, number: int) -> Row:
        """Copy one row into memory."""
        start, end = int(self._offsets[number]), int(self._offsets[number + 1])
        return Row(np.array(self._tokens[start:end]), np.array(self._supervised[start:end]))


class StoreWriter:
    """Appends rows to the files of a store.

    Memory: 24 bytes per row, and a text per source; everything else goes straight to the files.
    """

    def __init__(self, folder: Path) -> None:
        """Start the files in an existing, empty folder."""
        self._folder = folder
        self._open = contextlib.ExitStack()
        self._tokens = self._start("tokens.npy", np.dtype(np.int32))
        self._supervised = self._start("supervised.npy", np.dtype(np.bool_))
        self._origins = self._start("origins.npy", _ORIGIN)
        self._origin_lines: dict[str, int] = {}
        self._signatures: IO[bytes] | None = None
        self._rejected = self._open.enter_context(
            (folder / "rejected.jsonl").open("w", encoding="utf-8")
        )
        self._lengths: list[npt.NDArray[np.int64]] = []
        self._learned: list[npt.NDArray[np.int32]] = []
        self._digests: list[npt.NDArray[np.uint64]] = []
        self._pieces: list[npt.NDArray[np.int32]] = []
        self.info = StoreInfo()

    def append(self, chunk: Chunk) -> None:
        """Write the rows of one chunk."""
        self._tokens.write(chunk.tokens.tobytes())
        self._supervised.write(chunk.supervised.tobytes())
        self._lengths.append(chunk.lengths)
        self._learned.append(chunk.learned)
        self._digests.append(chunk.digests)
        self._pieces.append(chunk.pieces)
        self._origins.write(np.array(self._number_origins(chunk.origins), np.int64).tobytes())
        if chunk.signatures is not None:
            self._signatures = self._signatures or self._start("signatures.npy", _SIGNATURE)
            self._signatures.write(chunk.signatures.tobytes())
        for row in chunk.rejected:
            self._rejected.write(dump_rejected(row) + "\n")
        self.info.add(chunk.info)

    def finish(self) -> None:
        """Complete all files."""
        info = self.info
        lengths = np.concatenate([np.zeros(0, np.int64), *self._lengths])
        learned = np.concatenate([np.zeros(0, np.int32), *self._learned])
        digests = np.concatenate([np.zeros(0, np.uint64), *self._digests])
        pieces = np.concatenate([np.zeros(0, np.int32), *self._pieces])
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        info.rows, info.tokens = len(lengths), int(offsets[-1])
        info.supervised_tokens = int(learned.sum())
        content = hashlib.blake2b(digest_size=16)
        arrays = {"offsets": offsets, "learned": learned, "digests": digests, "pieces": pieces}
        for name, array in arrays.items():
            content.update(array.tobytes())
            np.save(self._folder / f"{name}.npy", array)
        info.content = content.hexdigest()
        _complete(self._tokens, np.dtype(np.int32), info.tokens)
        _complete(self._supervised, np.dtype(np.bool_), info.tokens)
        _complete(self._origins, _ORIGIN, info.rows)
        lines = "".join(json.dumps(text) + "\n" for text in self._origin_lines)
        (self._folder / "origins.txt").write_text(lines, encoding="utf-8")
        if self._signatures is not None:
            _complete(self._signatures, _SIGNATURE, info.rows)
        self.close()
        (self._folder / "info.json").write_text(json.dumps(asdict(info), indent=1))

    def close(self) -> None:
        """Close the files, whatever state they are in."""
        self._open.close()

    def _number_origins(self, origins: list[str]) -> list[tuple[int, int]]:
        found = []
        for origin in origins:
            match = _NUMBERED.fullmatch(origin)
            text, number = (match[1], int(match[2])) if match else (origin, -1)
            found.append((self._origin_lines.setdefault(text, len(self._origin_lines)), number))
        return found

    def _start(self, name: str, dtype: np.dtype[Any]) -> IO[bytes]:
        file = self._open.enter_context((self._folder / name).open("wb"))
        _write_header(file, dtype, 0)
        return file


_SIGNATURE = np.dtype((np.uint32, (SIGNATURE_SIZE,)))
_ORIGIN = np.dtype((np.int64, (2,)))

_NUMBERED = re.compile(r"(.*(?::|, row ))(0|[1-9][0-9]{0,17})", re.DOTALL)
"""A place that is a number in something: a line of a file, a row of a table."""


def compute_store_digest(parts: Iterable[str]) -> str:
    """Compute a folder name from everything that the rows depend on."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()


def _complete(file: IO[bytes], dtype: np.dtype[Any], length: int) -> None:
    file.seek(0)
    _write_header(file, dtype, length)


def _write_header(file: IO[bytes], dtype: np.dtype[Any], length: int) -> None:
    # numpy pads a header so that the length can grow in place up to 21 digits.
    shape = {"descr": np.lib.format.dtype_to_descr(dtype.base), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, {**shape, "shape": (length, *dtype.shape)})

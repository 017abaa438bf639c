"""Tokenised rows on disk, memory-mapped, written once per combination of data and settings.

<cache>/tokens/<digest>/
  tokens.npy       int32, all rows one after the other
  supervised.npy   bool, the same length
  offsets.npy      int64, (rows + 1,): where each row starts
  learned.npy      int64, (rows,): supervised tokens per row
  digests.npy      uint64, (rows,): a hash of the example that the row comes from
  info.json        counts
"""

import array
import contextlib
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bigft.data.tokenize import Row
from bigft.errors import DataError


@dataclass
class StoreInfo:
    """What was counted while the rows were written."""

    formats: dict[str, int] = field(default_factory=dict)
    """Records per format."""

    rows: int = 0
    rejected_rows: int = 0
    """Rows without a supervised token; they are left out."""

    tokens: int = 0
    supervised_tokens: int = 0
    truncated_rows: int = 0
    split_rows: int = 0
    """Texts that became more than one row."""

    conversations: int = 0
    """Examples that were rendered with a chat template."""


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
            self.supervised_counts: npt.NDArray[np.int64] = np.load(
                folder / "learned.npy", mmap_mode="r"
            )
            self.digests: npt.NDArray[np.uint64] = np.load(folder / "digests.npy", mmap_mode="r")
        except (OSError, ValueError, TypeError) as error:
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
        return self._offsets[1:] - self._offsets[:-1]

    def load_row(self, number: int) -> Row:
        """Copy one row into memory."""
        start, end = int(self._offsets[number]), int(self._offsets[number + 1])
        return Row(np.array(self._tokens[start:end]), np.array(self._supervised[start:end]))


class StoreWriter:
    """Appends rows to the files of a store.

    Memory: 24 bytes per row; the tokens go straight to the files.
    """

    def __init__(self, folder: Path) -> None:
        """Start the files in an existing, empty folder."""
        self._folder = folder
        self._open = contextlib.ExitStack()
        self._tokens = self._start("tokens.npy", np.dtype(np.int32))
        self._supervised = self._start("supervised.npy", np.dtype(np.bool_))
        self._offsets = array.array("q", [0])
        self._learned = array.array("q")
        self._digests = array.array("Q")
        self.info = StoreInfo()

    def append(self, rows: Sequence[Row], digest: int) -> None:
        """Write the rows of one example; those without a supervised token are only counted."""
        self.info.split_rows += len(rows) > 1
        for row in rows:
            learned = int(row.supervised.sum())
            if learned == 0:
                self.info.rejected_rows += 1
                continue
            self._tokens.write(row.input_ids.astype(np.int32, copy=False).tobytes())
            self._supervised.write(row.supervised.tobytes())
            self._offsets.append(self._offsets[-1] + len(row))
            self._learned.append(learned)
            self._digests.append(digest)
            self.info.truncated_rows += row.is_truncated

    def finish(self) -> None:
        """Complete all files.

        Raises:
            DataError: No row was written.
        """
        info = self.info
        info.rows, info.tokens = len(self._learned), self._offsets[-1]
        info.supervised_tokens = sum(self._learned)
        if not info.rows:
            self.close()
            raise DataError(
                f"none of the {info.rejected_rows} rows has a token to train on: each has only "
                "prompts, or its answer begins after --max_length tokens"
            )
        for file, dtype in ((self._tokens, np.int32), (self._supervised, np.bool_)):
            file.seek(0)
            _write_header(file, np.dtype(dtype), info.tokens)
        self.close()
        _save(self._folder / "offsets.npy", self._offsets, np.int64)
        _save(self._folder / "learned.npy", self._learned, np.int64)
        _save(self._folder / "digests.npy", self._digests, np.uint64)
        (self._folder / "info.json").write_text(json.dumps(asdict(info), indent=1))

    def close(self) -> None:
        """Close the files, whatever state they are in."""
        self._open.close()

    def _start(self, name: str, dtype: np.dtype[Any]) -> IO[bytes]:
        file = self._open.enter_context((self._folder / name).open("wb"))
        _write_header(file, dtype, 0)
        return file


def compute_store_digest(parts: Iterable[str]) -> str:
    """Compute a folder name from everything that the rows depend on."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()


def _write_header(file: IO[bytes], dtype: np.dtype[Any], length: int) -> None:
    # numpy pads a header so that the length can grow in place up to 21 digits.
    shape = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, {**shape, "shape": (length,)})


def _save(path: Path, values: "array.array[int]", dtype: type[np.generic]) -> None:
    np.save(path, np.frombuffer(values, dtype=dtype))

"""What a teacher says of every learned token, asked once and kept on disk.

    <folder>/<digest>/              of one store of tokenised rows
      logits.npy                    one record per learned token, in the order of the store:
                                    ids int32 (K,), log_p float16 (K + 1,): see `Brief`
      info.json                     what it is, for people
    <folder>/.unfinished-<digest>/  while it is filled; it gets its name when it is complete
      progress.json                 how many rows are in the file for certain

The place of a row follows from the store alone, so it is found again under any order, packing,
batch size and number of ranks. fp16 keeps a log-probability above -16 to within 0.004, finer than
the bf16 logits it is made of.
"""

import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bigft.data.store.rows import Rows
from bigft.data.store.store import TokenStore, compute_store_digest
from bigft.errors import DataError
from bigft.tasks.divergence import Brief

_VERSION = "1"
"""Part of every digest; to be raised whenever the same teacher and rows give other files."""

_LOWEST = float(np.finfo(np.float16).min)
_SECONDS_BETWEEN_NOTES = 20.0

Numbers = npt.NDArray[np.int64]
Records = npt.NDArray[np.void]


@dataclass(frozen=True)
class Question:
    """What a teacher is asked about every token."""

    count: int
    """Most likely tokens, K."""

    temperature: float
    num_tokens: int
    """Of the tokenizer."""

    @property
    def record(self) -> np.dtype[Any]:
        """The answer about one token, `6 K + 2` bytes."""
        return np.dtype([("ids", "<i4", (self.count,)), ("log_p", "<f2", (self.count + 1,))])


def compute_answers_digest(question: Question, teacher: str, store: TokenStore) -> str:
    """Name the answers to a question about all rows of a store.

    Args:
        question: What is asked.
        teacher: Digest of everything that the teacher's logits follow from.
        store: What it is asked about.
    """
    asked = json.dumps(asdict(question), sort_keys=True)
    return compute_store_digest([_VERSION, asked, teacher, store.compute_digest()])


class StoredTeacher:
    """The answers about all rows of the data, mapped and not read."""

    def __init__(self, rows: Rows, folders: Sequence[Path], question: Question) -> None:
        """Map complete folders, one per store.

        Raises:
            DataError: A folder is damaged.
        """
        self._rows = rows
        self._question = question
        self._starts = [_find_starts(store) for store in rows.stores]
        self._tables = [
            _map(folder / "logits.npy", question.record, int(starts[-1]))
            for folder, starts in zip(folders, self._starts, strict=True)
        ]

    def load(self, numbers: Sequence[int]) -> Brief:
        """Read what the teacher says of the learned tokens of some rows, in the given order."""
        found = [np.zeros(0, self._question.record)]
        for number in numbers:
            part, place = self._rows.find_place(number)
            starts = self._starts[part]
            found.append(self._tables[part][starts[place] : starts[place + 1]])
        return unpack(np.concatenate(found), self._question.num_tokens)


class AnswerWriter:
    """Fills the file of one store; a later one goes on where it was interrupted."""

    def __init__(self, folder: Path, store: TokenStore, question: Question) -> None:
        """Open the unfinished file that is there, or begin one and take its disk space.

        Raises:
            OSError: There is no room, or the folder cannot be written.
        """
        self._folder = folder
        self._record = question.record
        self._starts = _find_starts(store)
        self._last_note = time.monotonic()
        self._notes = folder / "progress.json"
        self.rows = 0
        """Rows that are there, in the order in which they are asked about."""
        path = folder / "logits.npy"
        header = _make_header(self._record, int(self._starts[-1]))
        self._first = len(header)
        size = len(header) + self._record.itemsize * int(self._starts[-1])
        noted = self._read_note()
        if noted is not None and path.is_file() and path.stat().st_size == size:
            self.rows = noted
            self._file = os.open(path, os.O_RDWR)
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        # A disk that fills up is noticed now, and not after a day of the teacher's work.
        os.posix_fallocate(self._file, 0, size)
        os.pwrite(self._file, header, 0)
        self._note()

    def write(self, numbers: Numbers, records: Records) -> None:
        """Write the records of some rows, `(learned tokens of these rows,)` in their order."""
        lengths = (self._starts[numbers + 1] - self._starts[numbers]).tolist()
        start = 0
        for number, length in zip(numbers.tolist(), lengths, strict=True):
            place = self._first + int(self._starts[number]) * self._record.itemsize
            _write_all(self._file, records[start : start + length].tobytes(), place)
            start += length
        assert start == len(records), f"{len(records)} records for {start} learned tokens"

    def advance(self, rows: int) -> None:
        """Remember that the first so many rows of the asking order are written."""
        self.rows = rows
        if time.monotonic() - self._last_note > _SECONDS_BETWEEN_NOTES:
            self._note()

    def finish(self, final: Path, info: dict[str, Any]) -> None:
        """Give the complete folder its name."""
        os.fsync(self._file)
        (self._folder / "info.json").write_text(json.dumps(info, indent=1))
        self._folder.rename(final)
        # Not before: until then the next run would have to begin again.
        (final / self._notes.name).unlink()

    def close(self) -> None:
        """Close the file, whatever state it is in."""
        os.close(self._file)

    def _read_note(self) -> int | None:
        """Read how many rows are there; None of a note that a power loss left half written."""
        try:
            return int(json.loads(self._notes.read_text())["rows"])
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            return None

    def _note(self) -> None:
        # First the rows, then the word that they are there.
        os.fsync(self._file)
        written = self._notes.with_suffix(".new")
        written.write_text(json.dumps({"rows": self.rows}))
        written.replace(self._notes)
        self._last_note = time.monotonic()


def order_rows(store: TokenStore) -> Numbers:
    """Say in which order rows are asked about: the longest first, so that neighbours are alike."""
    return np.argsort(-store.lengths, kind="stable")


def cut_batches(lengths: Numbers, max_tokens: int) -> list[slice]:
    """Cut rows of falling length into batches that have at most `max_tokens` when padded."""
    cuts = []
    start = 0
    while start < len(lengths):
        count = max(1, max_tokens // int(lengths[start]))
        cuts.append(slice(start, min(start + count, len(lengths))))
        start += count
    return cuts


def pack(brief: Brief) -> Records:
    """Turn answers into records, `(N,)`."""
    count = brief.ids.shape[1]
    question = Question(count, 1.0, brief.width)
    records = np.empty(len(brief.ids), question.record)
    records["ids"] = brief.ids.cpu().numpy()
    # Minus infinity would become no number when it is multiplied by its probability of 0.
    records["log_p"] = brief.log_p.clamp(min=_LOWEST).cpu().numpy()
    return records


def unpack(records: Records, num_tokens: int) -> Brief:
    """Turn records into answers; rounded logarithms are scaled so that the sum is 1 again."""
    ids = torch.from_numpy(records["ids"].astype(np.int64))
    log_p = torch.from_numpy(records["log_p"].astype(np.float32)).log_softmax(1)
    return Brief(ids, log_p, num_tokens)


def _find_starts(store: TokenStore) -> Numbers:
    counts = store.supervised_counts.astype(np.int64)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _map(path: Path, record: np.dtype[Any], length: int) -> Records:
    try:
        table: Records = np.load(path, mmap_mode="r")
        if table.dtype != record or table.shape != (length,):
            raise ValueError(f"{table.shape} {table.dtype}, not {length} x {record}")
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"the teacher's stored logits in {path.parent} are damaged or not there ({error});"
            " delete this folder, and they are made again; all hosts have to see it"
        ) from error
    return table


def _make_header(record: np.dtype[Any], length: int) -> bytes:
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(record)
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": (length,)}
    )
    return file.getvalue()


def _write_all(file: int, content: bytes, place: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(file, view, place)
        view, place = view[written:], place + written

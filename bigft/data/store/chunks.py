"""Raw rows in, rows of tokens out, a chunk at a time, here or in other processes.

reader ──chunk of raw rows──► ChunkTokenizer ──Chunk──► StoreWriter
       (this process)         (any process)             (this process, in the reader's order)
"""

import ctypes
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any

import numpy as np

from bigft.data.clean.build import Cleaner
from bigft.data.clean.duplicates import compute_signature
from bigft.data.example import Conversation, Example, compute_digest, mark_copy
from bigft.data.formats.checks import EmptyTextError
from bigft.data.formats.table import Recognizer
from bigft.data.layouts.layout import Counts, Layout
from bigft.data.readers.raw import RawRow, Unreadable, parse
from bigft.data.section import DataSection
from bigft.data.store.rejected import Rejected
from bigft.data.store.store import Chunk, StoreInfo
from bigft.data.tokens.tokenize import OverlongError, Row, Tokenized
from bigft.errors import DataError

# Large enough that sending it costs little, small enough that a dozen in flight do not count.
_CHUNK_ROWS = 512
_CHUNK_BYTES = 1 << 20

_SET_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""

NOTHING_TO_LEARN = "no token to learn"


class ChunkTokenizer:
    """Everything that happens to a raw row until it is tokens."""

    def __init__(self, section: DataSection, layout: Layout) -> None:
        """Prepare for rows of one source.

        Raises:
            DataError: A setting of the cleaning or of the format cannot be used.
        """
        self._section = section
        self._layout = layout
        self._recognizer = Recognizer(section.format, section.columns)
        self._cleaner = Cleaner(section.clean)
        self._signs = section.clean.duplicates == "drop_near"

    def __call__(self, raws: list[RawRow]) -> Chunk:
        """Turn raw rows into rows of tokens; those that cannot be are in `rejected`."""
        info, rejected = StoreInfo(records=len(raws)), []
        entries: list[tuple[RawRow, Example, int]] = []
        for raw in raws:
            try:
                name, example = self._recognizer.read(parse(raw))
            except EmptyTextError as error:
                if self._section.clean.empty == "drop":
                    _add_counts(info.touched, {"dropped_empty": 1})
                else:
                    rejected.append(Rejected(raw.origin, str(error), _show(raw)))
                continue
            except (ValueError, DataError) as error:
                rejected.append(Rejected(raw.origin, str(error), _show(raw)))
                continue
            info.formats[name] = info.formats.get(name, 0) + 1
            entries += self._clean(raw, example, rejected)
        info.conversations = sum(isinstance(entry[1], Conversation) for entry in entries)
        builder = _ChunkBuilder(self._section, info, rejected, signs=self._signs)
        for (raw, example, digest), result in zip(
            entries, self._layout.tokenize([entry[1] for entry in entries]), strict=True
        ):
            builder.add(raw, example, digest, result)
        info.bad_rows = sum(row.is_bad for row in rejected)
        _add_counts(info.touched, self._cleaner.take_touched())
        return builder.build()

    def count(self, learned: Counts) -> Counts:
        """See `Layout`."""
        return self._layout.count(learned)

    def count_tokens(self, entries: Counts) -> Counts:
        """See `Layout`."""
        return self._layout.count_tokens(entries)

    def _clean(
        self, raw: RawRow, example: Example, rejected: list[Rejected]
    ) -> list[tuple[RawRow, Example, int]]:
        if self._cleaner.is_idle:
            return [(raw, example, compute_digest(example))]
        cleaned = self._cleaner.clean(example)
        if cleaned is None:
            return []
        digest = compute_digest(cleaned)
        copies = self._cleaner.augment(cleaned, digest)
        marked = ((raw, copy, mark_copy(digest, n)) for n, copy in enumerate(copies, 1))
        return [(raw, cleaned, digest), *marked]


class _ChunkBuilder:
    """Collects the rows of a chunk and counts what became of them."""

    def __init__(
        self, section: DataSection, info: StoreInfo, rejected: list[Rejected], *, signs: bool
    ) -> None:
        self._clean = section.clean
        self._info = info
        self._rejected = rejected
        self._signs = signs
        self._rows: list[Row] = []
        self._digests: list[int] = []
        self._pieces: list[int] = []
        self._origins: list[str] = []
        self._signatures: list[Any] = []

    def add(
        self, raw: RawRow, example: Example, digest: int, result: Tokenized | ValueError
    ) -> None:
        if isinstance(result, OverlongError) and self._is_unwanted(result.num_tokens):
            return
        if isinstance(result, ValueError):
            self._rejected.append(Rejected(raw.origin, str(result), _show(raw)))
            return
        info = self._info
        if self._is_unwanted(result.num_tokens):
            return
        info.overlong_rows += result.is_overlong
        pieces = [number for number, row in enumerate(result.rows) if row.supervised.any()]
        learned = [result.rows[number] for number in pieces]
        info.truncated_rows += sum(row.is_truncated for row in learned)
        info.split_rows += len(learned) > 1
        if learned:
            info.unsupervised_pieces += len(result.rows) - len(learned)
        elif result.rows:
            info.unsupervised_rows += 1
            self._rejected.append(Rejected(raw.origin, NOTHING_TO_LEARN, _show(raw), is_bad=False))
        self._rows += learned
        self._pieces += pieces
        self._digests += [digest] * len(learned)
        self._origins += [raw.origin] * len(learned)
        if self._signs:
            self._signatures += [compute_signature(example)] * len(learned)

    def _is_unwanted(self, num_tokens: int) -> bool:
        """Whether the length filters leave the example out."""
        name = ""
        if num_tokens < self._clean.min_tokens:
            name = "dropped_by_min_tokens"
        elif self._clean.max_tokens is not None and num_tokens > self._clean.max_tokens:
            name = "dropped_by_max_tokens"
        if name:
            _add_counts(self._info.touched, {name: 1})
        return bool(name)

    def build(self) -> Chunk:
        rows = self._rows
        signatures = None
        if self._signs:
            signatures = np.array(self._signatures, dtype=np.uint32).reshape(len(rows), -1)
        return Chunk(
            tokens=np.concatenate([np.zeros(0, np.int32), *(row.input_ids for row in rows)]),
            supervised=np.concatenate([np.zeros(0, np.bool_), *(row.supervised for row in rows)]),
            lengths=np.array([len(row) for row in rows], dtype=np.int64),
            learned=np.array([np.count_nonzero(row.supervised) for row in rows], dtype=np.int32),
            digests=np.array(self._digests, dtype=np.uint64),
            pieces=np.array(self._pieces, dtype=np.int32),
            origins=self._origins,
            signatures=signatures,
            rejected=self._rejected,
            info=self._info,
        )


def cut_into_chunks(raws: Iterable[RawRow]) -> Iterator[list[RawRow]]:
    """Group raw rows, up to 512 or 1 MiB each; a larger row is a chunk of its own."""
    chunk: list[RawRow] = []
    size = 0
    for raw in raws:
        length = _estimate_bytes(raw)
        if chunk and (len(chunk) == _CHUNK_ROWS or size + length > _CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(raw)
        size += length
    if chunk:
        yield chunk


def tokenize_chunks(
    tokenizer: ChunkTokenizer, chunks: Iterable[list[RawRow]], num_proc: int
) -> Generator[Chunk, None, None]:
    """Tokenise every chunk, in order, in `num_proc` other processes or (0) in this one.

    Memory: two chunks per process.

    Raises:
        DataError: A process died.
    """
    if num_proc == 0:
        yield from map(tokenizer, chunks)
        return
    # Forked children need no import of their own and no copy of the tokenizer. They touch neither
    # torch nor the process group, only the tokenizer.
    pool = ProcessPoolExecutor(num_proc, multiprocessing.get_context("fork"), _adopt, (tokenizer,))
    chunks = iter(chunks)
    running: deque[Future[Chunk]] = deque()
    try:
        running.extend(pool.submit(_work, chunk) for chunk in islice(chunks, 2 * num_proc))
        while running:
            done = running.popleft().result()
            running.extend(pool.submit(_work, chunk) for chunk in islice(chunks, 1))
            yield done
    except BrokenProcessPool as error:
        raise DataError(
            f"one of {num_proc} tokenising processes died, most likely for lack of memory; use"
            " fewer with --data.loading.num_proc"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_adopted: list[ChunkTokenizer] = []
"""In a tokenising process: what it works with."""


def _adopt(tokenizer: ChunkTokenizer) -> None:
    # The parent decides what a signal means, also one that a terminal sends to all.
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    # A parent that is killed must not leave workers behind that wait for chunks.
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    # One thread per process: together they fill the cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _adopted[:] = [tokenizer]


def _work(raws: list[RawRow]) -> Chunk:
    return _adopted[0](raws)


def _estimate_bytes(raw: RawRow) -> int:
    if isinstance(raw.payload, bytes):
        return len(raw.payload)
    if isinstance(raw.payload, Unreadable):
        return len(raw.payload.content)
    texts = (value for value in raw.payload.values() if isinstance(value, str))
    # Lists are not looked into: conversations of 2 kB are a good guess.
    return 2048 + sum(map(len, texts))


def _show(raw: RawRow) -> Any:
    if isinstance(raw.payload, bytes):
        return raw.payload.decode("utf-8", "replace").strip()
    return raw.payload.content if isinstance(raw.payload, Unreadable) else dict(raw.payload)


def _add_counts(counts: dict[str, int], more: dict[str, int]) -> None:
    for name, count in more.items():
        counts[name] = counts.get(name, 0) + count

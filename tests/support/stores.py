"""Stores of token rows without a tokenizer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bigft.data.store.store import Chunk, StoreInfo, StoreWriter, TokenStore
from bigft.data.tokens.tokenize import Row


def make_chunk(
    rows: Sequence[Row],
    digests: Sequence[int] = (),
    pieces: Sequence[int] = (),
    origins: Sequence[str] = (),
) -> Chunk:
    """Make what a tokeniser would hand over; digests are far apart, every row is a first piece."""
    # Multiples of 32 stand for examples, not for changed copies.
    chosen = digests or [32 * number for number in range(len(rows))]
    return Chunk(
        tokens=np.concatenate([np.zeros(0, np.int32), *(row.input_ids for row in rows)]),
        supervised=np.concatenate([np.zeros(0, np.bool_), *(row.supervised for row in rows)]),
        lengths=np.array([len(row) for row in rows], dtype=np.int64),
        learned=np.array([row.supervised.sum() for row in rows], dtype=np.int32),
        digests=np.array(chosen, dtype=np.uint64),
        pieces=np.array(pieces or [0] * len(rows), dtype=np.int32),
        origins=list(origins or [f"made.jsonl:{number + 1}" for number in range(len(rows))]),
        signatures=None,
        rejected=[],
        info=StoreInfo(records=len(rows)),
    )


def write_store(folder: Path, *chunks: Chunk) -> TokenStore:
    """Write chunks to a folder that is made for them, and open it."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = StoreWriter(folder)
    for chunk in chunks:
        writer.append(chunk)
    writer.finish()
    return TokenStore(folder)

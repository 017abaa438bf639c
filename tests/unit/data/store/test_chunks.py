"""From raw rows to chunks, here and in other processes."""

import json
import multiprocessing
import os
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from bigft.data.example import find_copies, find_originals
from bigft.data.layouts.next_token import NextToken
from bigft.data.readers.raw import RawRow, make_unreadable
from bigft.data.section import DataSection
from bigft.data.store import chunks as module
from bigft.data.store.chunks import ChunkTokenizer, cut_into_chunks, tokenize_chunks
from bigft.data.store.store import StoreWriter
from bigft.errors import DataError


def make_raws(*records: Any) -> list[RawRow]:
    return [RawRow(json.dumps(record).encode(), f"a:{n}") for n, record in enumerate(records, 1)]


def test_chunks_are_cut_by_rows_and_by_bytes() -> None:
    small = [RawRow(b"x" * 10, f"a:{n}") for n in range(1300)]
    assert [len(chunk) for chunk in cut_into_chunks(small)] == [512, 512, 276]
    large = [RawRow(b"x" * 400_000, f"a:{n}") for n in range(5)]
    assert [len(chunk) for chunk in cut_into_chunks(large)] == [2, 2, 1]
    alone = [RawRow(b"x", "a:1"), RawRow(b"x" * 2_000_000, "a:2"), RawRow(b"x", "a:3")]
    assert [len(chunk) for chunk in cut_into_chunks(alone)] == [1, 1, 1]
    records = [RawRow({"text": "x" * 600_000}, f"a:{n}") for n in range(3)]
    assert [len(chunk) for chunk in cut_into_chunks(records)] == [1, 1, 1]
    for raws in (small, large, alone, records):
        assert [raw for chunk in cut_into_chunks(raws) for raw in chunk] == raws
    assert list(cut_into_chunks([])) == []


def test_chunks_are_cut_while_the_rows_are_read() -> None:
    endless = (RawRow(b"x", f"a:{n}") for n in count())
    assert [len(chunk) for chunk in islice(cut_into_chunks(endless), 3)] == [512] * 3


def test_each_raw_row_is_tokens_or_rejected_or_counted(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    clean = {"min_tokens": 2, "max_tokens": 30, "drop_pattern": "SECRET", "strip": True}
    section = DataSection.model_validate({"max_length": 16, "clean": clean})
    raws = [
        *make_raws(
            {"text": "fine "},
            {"text": "one two three four five six seven eight nine ten eleven"},
            {"text": "word " * 100},
            {"text": "SECRET"},
            {"messages": [{"role": "user", "content": "Hi"}]},
            {"text": 3},
        ),
        RawRow(make_unreadable("torn", "half a r"), "a:7"),
        RawRow({"prompt": "p", "completion": "c"}, "a:8"),
    ]
    chunk = ChunkTokenizer(section, NextToken(tokenizer, section))(raws)
    info = chunk.info
    assert (info.records, info.bad_rows, info.unsupervised_rows) == (8, 2, 1)
    assert info.formats == {"text": 4, "chat": 1, "pairs": 1}
    assert info.conversations == 1
    assert info.touched["dropped_by_max_tokens"] == 1
    assert info.touched["dropped_by_drop_pattern"] == 1
    assert info.touched["stripped"] == 2
    assert [row.origin for row in chunk.rejected] == ["a:6", "a:7", "a:5"]
    assert [row.is_bad for row in chunk.rejected] == [True, True, False]
    assert chunk.rejected[1].content == "half a r"
    assert info.overlong_rows == info.split_rows == 1
    assert chunk.pieces.tolist() == [0, 0, 1, 0]
    assert chunk.lengths.sum() == len(chunk.tokens) == len(chunk.supervised)
    cuts = np.cumsum(chunk.lengths)[:-1]
    assert chunk.learned.tolist() == [part.sum() for part in np.split(chunk.supervised, cuts)]
    assert tokenizer.decode(np.split(chunk.tokens, cuts)[0]) == "fine<|endoftext|>"


def test_copies_belong_to_their_example(tokenizer: PreTrainedTokenizerFast) -> None:
    augment = {"augment": {"copies": 2, "swap": 0.4}}
    section = DataSection.model_validate({"clean": augment})
    raws = make_raws(*({"text": f"{n} one two three four five six seven"} for n in range(10)))
    chunk = ChunkTokenizer(section, NextToken(tokenizer, section))(raws)
    copies = find_copies(chunk.digests)
    assert (~copies).sum() == 10
    assert copies.sum() >= 15
    originals = find_originals(chunk.digests)
    assert len(set(originals.tolist())) == 10
    assert len(set(chunk.digests.tolist())) == len(chunk.digests)


def write_all(folder: Path, section: DataSection, tokenizer: Any, num_proc: int) -> None:
    records = (
        {"text": f"{n} " + "word " * (n % 50)} if n % 11 else {"text": n} for n in range(1, 2000)
    )
    raws = (RawRow(json.dumps(record).encode(), f"a:{n}") for n, record in enumerate(records))
    folder.mkdir()
    writer = StoreWriter(folder)
    work = ChunkTokenizer(section, NextToken(tokenizer, section))
    for chunk in tokenize_chunks(work, cut_into_chunks(raws), num_proc):
        writer.append(chunk)
    writer.finish()


def test_other_processes_write_the_same_bytes(tmp_path: Path, tokenizer) -> None:
    clean = {"duplicates": "drop_near", "augment": {"copies": 1, "delete": 0.5}}
    section = DataSection.model_validate({"max_length": 16, "clean": clean})
    for num_proc in (0, 2):
        write_all(tmp_path / str(num_proc), section, tokenizer, num_proc)
    names = {file.name for file in (tmp_path / "0").iterdir()}
    assert {"tokens.npy", "signatures.npy", "rejected.jsonl", "info.json"} < names
    for name in names:
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


class Dying(ChunkTokenizer):
    """Dies of one row."""

    def __call__(self, raws: list[RawRow]) -> Any:
        if any(raw.origin == "a:700" for raw in raws):
            os._exit(9)
        return super().__call__(raws)


class Failing(ChunkTokenizer):
    def __call__(self, raws: list[RawRow]) -> Any:
        raise DataError("no such column")


RAWS = [RawRow(b'{"text": "x"}', f"a:{n}") for n in range(2000)]


def test_a_process_that_dies_is_told_with_what_helps(tokenizer) -> None:
    work = Dying(DataSection(), NextToken(tokenizer, DataSection()))
    with pytest.raises(DataError, match="one of 2 tokenising processes died.*--data.loading.num_"):
        list(tokenize_chunks(work, cut_into_chunks(RAWS), 2))


def test_an_error_in_a_process_is_the_error_itself(tokenizer) -> None:
    work = Failing(DataSection(), NextToken(tokenizer, DataSection()))
    for num_proc in (0, 1):
        with pytest.raises(DataError, match="^no such column$"):
            list(tokenize_chunks(work, cut_into_chunks(RAWS), num_proc))


def test_stopping_early_reads_no_further_and_leaves_no_process(tokenizer) -> None:
    read = []

    def read_raws() -> Any:
        for n in count():
            read.append(n)
            yield RawRow(b'{"text": "x"}', f"a:{n}")

    before = set(multiprocessing.active_children())
    section = DataSection()
    work = ChunkTokenizer(section, NextToken(tokenizer, section))
    found = tokenize_chunks(work, cut_into_chunks(read_raws()), 1)
    next(found)
    found.close()
    assert len(read) <= 5 * module._CHUNK_ROWS
    assert set(multiprocessing.active_children()) <= before

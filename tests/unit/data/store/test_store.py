import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import make_chunk, write_store

from bigft.data.store.rejected import Rejected
from bigft.data.store.store import StoreInfo, StoreWriter, TokenStore, compute_store_digest
from bigft.data.tokens.tokenize import Row
from bigft.errors import DataError


def build_row(tokens: list[int]) -> Row:
    return Row(np.array(tokens, dtype=np.int32), np.arange(len(tokens)) > 0)


rows_of_tokens = st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=9)


@given(chunks=st.lists(st.lists(rows_of_tokens, max_size=4), max_size=3))
def test_rows_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[list[list[int]]]
) -> None:
    rows = [tokens for chunk in chunks for tokens in chunk]
    digests = iter(range(2**64 - 1, 0, -1))
    made = [
        make_chunk([build_row(tokens) for tokens in chunk], [next(digests) for _ in chunk])
        for chunk in chunks
    ]
    store = write_store(tmp_path_factory.mktemp("store"), *made)
    assert len(store) == len(rows) == store.info.rows
    for number, tokens in enumerate(rows):
        row = store.load_row(number)
        assert (row.input_ids.tolist(), row.input_ids.dtype) == (tokens, np.int32)
        assert row.supervised.tolist() == [False] + [True] * (len(tokens) - 1)
    assert store.lengths.tolist() == [len(tokens) for tokens in rows]
    assert store.supervised_counts.tolist() == [len(tokens) - 1 for tokens in rows]
    assert store.digests.tolist() == [2**64 - 1 - number for number in range(len(rows))]


def test_pieces_and_signatures_come_back(tmp_path: Path) -> None:
    chunk = make_chunk([build_row([1, 2])] * 3, [32, 32, 64], [0, 1, 0])
    marks = np.arange(3 * 64, dtype=np.uint32).reshape(3, 64)
    signed = type(chunk)(**{**vars(chunk), "signatures": marks})
    store = write_store(tmp_path, signed, signed)
    assert store.pieces.tolist() == [0, 1, 0] * 2
    assert np.array_equal(store.signatures, np.concatenate([marks, marks]))


def test_counts_of_all_chunks_are_added(tmp_path: Path) -> None:
    one = make_chunk([build_row([1, 2, 3]), build_row([3, 4])])
    one.info.add(StoreInfo(formats={"text": 2}, truncated_rows=1, touched={"stripped": 1}))
    two = make_chunk([build_row([1, 2])])
    two.info.add(StoreInfo(formats={"text": 1, "chat": 1}, bad_rows=2, touched={"stripped": 3}))
    info = write_store(tmp_path, one, two).info
    assert (info.records, info.rows, info.tokens, info.supervised_tokens) == (3, 3, 7, 4)
    assert (info.truncated_rows, info.bad_rows) == (1, 2)
    assert info.formats == {"text": 3, "chat": 1}
    assert info.touched == {"stripped": 4}


def test_rejected_rows_are_kept_in_order(tmp_path: Path) -> None:
    chunks = [make_chunk([build_row([1, 2])]) for _ in range(2)]
    for number, chunk in enumerate(chunks):
        chunk.rejected.append(Rejected(f"a.jsonl:{number}", "why", {"text": number}))
    file = write_store(tmp_path, *chunks).rejected_file
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"origin": f"a.jsonl:{number}", "reason": "why", "row": {"text": number}}
        for number in range(2)
    ]


def test_the_content_is_named_by_the_rows_and_not_by_the_place(tmp_path: Path) -> None:
    rows = [build_row([1, 2, 3]), build_row([3, 4])]
    names = [
        write_store(tmp_path / str(number), chunk).info.content
        for number, chunk in enumerate(
            [make_chunk(rows, [32, 64]), make_chunk(rows, [32, 64]), make_chunk(rows, [32, 96])]
        )
    ]
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize("damage", ["tokens.npy", "learned.npy", "pieces.npy", "info.json"])
@pytest.mark.parametrize("content", ["", json.dumps({"unknown": 1})])
def test_a_damaged_store_is_named(tmp_path: Path, damage: str, content: str) -> None:
    write_store(tmp_path, make_chunk([build_row([1, 2, 3])]))
    (tmp_path / damage).write_text(content)
    with pytest.raises(DataError, match="are damaged .* delete this folder"):
        TokenStore(tmp_path)


def test_an_unfinished_store_is_no_store(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path)
    writer.append(make_chunk([build_row([1, 2, 3])]))
    writer.close()
    with pytest.raises(DataError, match="delete this folder"):
        TokenStore(tmp_path)


def test_store_digest_tells_parts_apart() -> None:
    assert compute_store_digest(["ab", "c"]) == compute_store_digest(["ab", "c"])
    assert compute_store_digest(["ab", "c"]) != compute_store_digest(["a", "bc"])

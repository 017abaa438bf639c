import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigft.data.store import StoreWriter, TokenStore, compute_store_digest
from bigft.data.tokenize import Row
from bigft.errors import DataError


def build_row(tokens: list[int], *, is_truncated: bool = False) -> Row:
    marks = np.arange(len(tokens)) > 0
    return Row(np.array(tokens, dtype=np.int32), marks, is_truncated)


@given(rows=st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=9), min_size=1))
def test_rows_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    writer = StoreWriter(folder)
    for number, tokens in enumerate(rows):
        writer.append([build_row(tokens)], digest=2**64 - 1 - number)
    writer.finish()
    store = TokenStore(folder)
    assert len(store) == len(rows)
    for number, tokens in enumerate(rows):
        row = store.load_row(number)
        assert (row.input_ids.tolist(), row.input_ids.dtype) == (tokens, np.int32)
        assert row.supervised.tolist() == [False] + [True] * (len(tokens) - 1)
    assert store.lengths.tolist() == [len(tokens) for tokens in rows]
    assert store.supervised_counts.tolist() == [len(tokens) - 1 for tokens in rows]
    assert store.digests.tolist() == [2**64 - 1 - number for number in range(len(rows))]


def test_everything_is_counted(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path)
    writer.append([build_row([1, 2, 3]), build_row([3, 4])], digest=1)
    writer.append([build_row([1])], digest=2)
    writer.append([build_row([1, 2], is_truncated=True)], digest=3)
    writer.finish()
    info = TokenStore(tmp_path).info
    assert (info.rows, info.rejected_rows, info.truncated_rows, info.split_rows) == (3, 1, 1, 1)
    assert (info.tokens, info.supervised_tokens) == (7, 4)


def test_rows_without_anything_to_learn_are_an_error_when_there_are_no_others(
    tmp_path: Path,
) -> None:
    writer = StoreWriter(tmp_path)
    writer.append([build_row([1])], digest=1)
    with pytest.raises(DataError, match="none of the 1 rows has a token to train on"):
        writer.finish()


@pytest.mark.parametrize("damage", ["tokens.npy", "info.json"])
def test_a_damaged_store_is_named(tmp_path: Path, damage: str) -> None:
    writer = StoreWriter(tmp_path)
    writer.append([build_row([1, 2, 3])], digest=1)
    writer.finish()
    (tmp_path / damage).write_text(json.dumps({"unknown": 1}))
    with pytest.raises(DataError, match="are damaged .* delete this folder"):
        TokenStore(tmp_path)


def test_store_digest_tells_parts_apart() -> None:
    assert compute_store_digest(["ab", "c"]) == compute_store_digest(["ab", "c"])
    assert compute_store_digest(["ab", "c"]) != compute_store_digest(["a", "bc"])

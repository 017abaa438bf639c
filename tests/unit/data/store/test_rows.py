from collections.abc import Callable, Sequence

import numpy as np

from bigft.data.store.rows import Rows
from bigft.data.store.store import TokenStore


def test_rows_of_several_stores_are_numbered_through(
    make_store: Callable[[Sequence[int]], TokenStore],
) -> None:
    stores = [make_store([3, 4]), make_store([5]), make_store([2, 6, 7])]
    rows = Rows(stores)
    assert len(rows) == 6
    assert rows.lengths.tolist() == [3, 4, 5, 2, 6, 7]
    assert rows.supervised_counts.tolist() == [2, 2, 3, 1, 3, 4]
    assert rows.find_part(np.arange(6)).tolist() == [0, 0, 1, 2, 2, 2]
    wanted = [(part, number) for part, store in enumerate(stores) for number in range(len(store))]
    for number, (part, of_part) in enumerate(wanted):
        row, expected = rows.load_row(number), stores[part].load_row(of_part)
        assert row.source == part
        assert row.input_ids.tolist() == expected.input_ids.tolist()
        assert row.supervised.tolist() == expected.supervised.tolist()


def test_a_store_without_rows_changes_no_number(
    make_store: Callable[[Sequence[int]], TokenStore],
) -> None:
    rows = Rows([make_store([]), make_store([3]), make_store([]), make_store([4])])
    assert rows.find_part(np.arange(2)).tolist() == [1, 3]
    assert [len(rows.load_row(number)) for number in range(2)] == [3, 4]

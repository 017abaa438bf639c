import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigft.data.readers import json_scanner
from bigft.data.readers.json_values import read_json_values
from bigft.data.readers.raw import RawRow, parse
from bigft.errors import DataError

Read = Callable[[str, bytes], list[Any]]
ReadRows = Callable[[str, bytes], list[RawRow]]

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
ROWS = [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        ({"data": ROWS}, ROWS),
        ({"version": "1.1", "Data": ROWS}, ROWS),
        ({"anything": ROWS}, ROWS),
        ({"train": ROWS, "validation": TURNS}, ROWS),
        ({"train": ROWS, "data": TURNS}, ROWS),
        ({"examples": TURNS}, TURNS),
        ({"n": [1, 2e300], "t": ["a", "b"]}, [{"n": 1, "t": "a"}, {"n": 2e300, "t": "b"}]),
        ({"messages": [TURNS, TURNS[:1]]}, [{"messages": TURNS}, {"messages": TURNS[:1]}]),
        ({"messages": TURNS}, [{"messages": TURNS}]),
        ({"messages": TURNS, "tools": ROWS}, [{"messages": TURNS, "tools": ROWS}]),
        ({"turns_of_ours": TURNS}, [{"turns_of_ours": TURNS}]),
        ({"text": "a", "spans": ROWS}, [{"text": "a", "spans": ROWS}]),
        ({"text": "a"}, [{"text": "a"}]),
        ({}, [{}]),
    ],
)  # fmt: skip
def test_an_object_is_a_container_columns_or_a_row(read: Read, value: Any, rows: Any) -> None:
    for indent in (None, 2):
        assert read("a.json", json.dumps(value, indent=indent).encode()) == rows


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[]", "the array is empty"),
        (b'{"data": []}', "the lists of the columns are empty"),
        (b'{"a": [1, 2], "b": [1]}', r"differ in length \('a': 2, 'b': 1\)"),
        (b'{"t\xe9": ["a"]}', r"the name of the column 't\\udce9' is not UTF-8"),
        (b'{"\\udce9": ["a"]}', "the name of the column .* is not UTF-8"),
        (b'{"rows": [{}], "data": [{}]}', r"2 lists of objects \('rows', 'data'\)"),
        (b'{"data": [{}], "data": [{}]}', "the key 'data' stands twice"),
        (b'"text"', "neither an array nor an object"),
        (b"[{}] [{}]", r"a\.json:1: text behind the end of the array"),
        (b'[{"a": 1},\n{"a": 2}', r"a\.json:2: not JSON \('\]' is missing\) at "),
        (b'[{"a": 1},\n{"a": b}]', r"a\.json:2: not JSON \(Expecting value\) at '.*b}\]'"),
        (b'[{"a": 1}\n{"a": 2}]', r"a\.json:2: not JSON \('\]' is missing\)"),
        (b'[{"a": 1},\n]', r"a\.json:2: not JSON"),
        (b'[{"a": "\n"}]', r"a\.json:1: not JSON \(Invalid control character at\)"),
        (b'[{"a": "', "Unterminated string"),
        (b"{'a': 1}", "a key in double quotes is missing"),
        (b'{"a" 1}', "':' is missing"),
        (b"[" + b'{"a":' * 100_000, r"a\.json:1: nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", r"not JSON \(Exceeds the limit"),
        (b'{"a": 1}\n{"a": 2', r"a\.json:2: not JSON"),
    ],
)  # fmt: skip
def test_broken_json_is_named_with_its_place(read: Read, content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read("a.json", content)


def test_elements_that_are_no_rows_leave_the_others_alone(read_rows: ReadRows, read: Read) -> None:
    deep = b'{"a":' + b"[" * 100 + b"]" * 100 + b"}"
    content = b'[{"a": 1},\n3,\n\n[{"a": 2}], {"a": "\xe9"}, {"a": "\\ud83d"}, %s, {"a": 4}]' % deep
    first, *bad, last = read("a.json", content)
    assert (first, last) == ({"a": 1}, {"a": 4})
    assert bad[0] == "a number, not an object: '3'"
    assert bad[1] == "a list, not an object: '[{\"a\": 2}]'"
    assert "not UTF-8 at byte 7" in bad[2]
    assert "half of a surrogate pair" in bad[3]
    assert "nested more than 100 levels deep" in bad[4]
    lines = [row.origin.rpartition(":")[2] for row in read_rows("a.json", content)]
    assert lines == ["1", "2", "4", "4", "4", "4", "4"]


def test_a_bad_line_between_objects_on_lines_leaves_the_others_alone(read: Read) -> None:
    rows = read("a.json", b'{"a": 1}\n{"a": x}\n{"a": 3}')
    assert rows[::2] == [{"a": 1}, {"a": 3}]
    assert "not JSON" in rows[1]


def test_half_a_pair_is_refused_and_a_whole_one_read(read: Read) -> None:
    assert read("a.json", rb'[{"a": "\ud83d\ude00"}]') == [{"a": "\U0001f600"}]
    assert read("a.json", rb'[{"a": "\\ud83d"}]') == [{"a": r"\ud83d"}]


@pytest.mark.parametrize("value", ["array", "container", "columns"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, value: str) -> None:
    text = "x" * 5000
    rows = [{"text": text, "n": number} for number in range(6000)]
    values = {
        "array": rows,
        "container": {"about": "us", "data": rows},
        "columns": {"n": list(range(6000)), "text": [text] * 6000},
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(values[value]))
    tracemalloc.start()
    numbers = [parse(row)["n"] for row in read_json_values(path, "--data")]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert numbers == list(range(6000))
    # Per column: a buffer, a block, its text and the text behind the last element.
    assert peak < (16 if value == "columns" else 9) << 20 < path.stat().st_size // 1.5


def test_a_value_without_end_does_not_fill_the_memory(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_scanner, "MAX_ROW_BYTES", 4 << 20)
    with pytest.raises(DataError, match=r"a\.json:2: a value of more than 4 MiB"):
        read("a.json", b'[{},\n"' + b"x" * (9 << 20))


texts = st.text(max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150)
@given(
    rows=st.lists(st.dictionaries(texts, json_values, max_size=3), min_size=1, max_size=4),
    block=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    is_ascii=st.booleans(),
)
def test_rows_are_the_same_wherever_the_blocks_end(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, Any]],
    block: int,
    indent: int | None,
    is_ascii: bool,
) -> None:
    path = tmp_path_factory.getbasetemp() / "blocks.json"
    text = json.dumps(rows, indent=indent, ensure_ascii=is_ascii)
    try:
        path.write_text(text, encoding="utf-8")
    except UnicodeEncodeError:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_scanner, "_BLOCK_BYTES", block)
        assert [parse(row) for row in read_json_values(path, "--data")] == json.loads(text)

import json
import math

import pytest

from bigft.data.readers.raw import RawRow, Unreadable, make_unreadable, parse


def explain(payload: bytes) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse(RawRow(payload, "a.jsonl:1"))
    assert type(caught.value) is ValueError
    return str(caught.value)


def test_records_pass_and_lines_are_parsed() -> None:
    record = {"a": 1}
    assert parse(RawRow(record, "")) is record
    assert parse(RawRow(b'\xef\xbb\xbf {"a": "\xc3\xa9"}\r\n', "")) == {"a": "é"}
    assert math.isnan(parse(RawRow(b'{"a": NaN}', ""))["a"])


def test_an_unreadable_row_raises_its_reason() -> None:
    with pytest.raises(ValueError, match=r"^broken: 'x{100}'\.\.\.$"):
        parse(RawRow(Unreadable("broken", "x" * 101), ""))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"text\n", "not JSON (Expecting value at character 1): 'text'"),
        (b'{"a": 1} {"a": 2}', 'not JSON (Extra data at character 10): \'{"a": 1} {"a": 2}\''),
        (b'{"a": %s}' % (b"9" * 5000), "not JSON (Exceeds the limit (4300"),
        (b'"a"', "a text, not an object: '\"a\"'"),
        (b"true", "true or false, not an object: 'true'"),
        (b"1.5", "a number, not an object: '1.5'"),
        (b'[{"a": 1}]', "a list, not an object; a JSON array, or objects over several lines, need"),
        (b"{\n", "over several lines, need a file name ending in .json: '{'"),
        (b'{"a": "\\uD83D"}', "half of a surrogate pair ('\\ud83d') is no character"),
        (b'{"a": "\xe9"}', "not UTF-8 at byte 7"),
        ('{"a": "b"}\n'.encode("utf-16-le"), "not UTF-8 but UTF-16, as it seems; convert"),
    ],
)
def test_a_bad_line_says_why(line: bytes, reason: str) -> None:
    assert reason in explain(line)


@pytest.mark.parametrize("depth", [101, 900, 1_000_000])
def test_absurdly_deep_nesting_is_refused(depth: int) -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        inner = b"1" if opening != b"[" else b""
        line = b'{"a":' + opening * depth + inner + closing * depth + b"}"
        assert "nested more than 100 levels deep" in explain(line)


def test_many_objects_side_by_side_are_no_nesting() -> None:
    record = {"messages": [{"role": "user", "content": "a"}] * 500}
    assert parse(RawRow(json.dumps(record).encode(), "")) == record


def test_kept_content_is_short_and_can_be_written() -> None:
    text = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert make_unreadable("bad", text) == Unreadable("bad", "caf\\xe9")
    assert len(make_unreadable("bad", "x" * 5000).content) == 1000

from collections.abc import Callable
from typing import Any

import pytest

from bigft.data.readers import document
from bigft.data.readers.raw import RawRow

Read = Callable[[str, bytes], list[Any]]
ReadRows = Callable[[str, bytes], list[RawRow]]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "A.TXT"])
def test_a_text_file_is_one_row(read: Read, name: str) -> None:
    assert read(name, b"\xef\xbb\xbfone\n\ntwo\r\n") == [{"text": "one\n\ntwo\r\n"}]


def test_bytes_that_are_not_utf8_spoil_the_row(read: Read) -> None:
    (reason,) = read("a.txt", b"caf\xe9")
    assert "not UTF-8 at byte 3" in reason
    assert "iconv -f ISO-8859-1 -t UTF-8" in reason


def test_a_very_long_document_comes_in_pieces(
    read: Read, read_rows: ReadRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "PIECE_CHARACTERS", 10)
    content = "one\n\ntwo\nthree four\nfive six seven eight\n\n  \n\n\n\n          \nnine é"
    rows = read("a.txt", content.encode())
    texts = [row["text"] for row in rows]
    assert texts[0] == "one\n\n"
    assert all(text.strip() for text in texts)
    assert all(len(text) <= 20 for text in texts)
    assert "".join("".join(texts).split()) == "".join(content.split())
    places = [row.origin.rpartition(":")[2] for row in read_rows("a.txt", content.encode())]
    assert places[:2] == ["1", "3"]

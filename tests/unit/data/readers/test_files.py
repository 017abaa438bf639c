import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigft.data.readers.files import DOCUMENTS, READERS, find_suffix
from bigft.errors import DataError

Read = Callable[[str, bytes], list[Any]]
Compress = Callable[[bytes, str], bytes]

ROWS = [{"text": "één"}, {"text": 'two, "three"\nfour'}]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
TEXTS = {
    "a.jsonl": LINES + "\n\n",
    "no_line_end.jsonl": LINES,
    "bom.jsonl": "\ufeff" + LINES.replace("\n", "\r\n"),
    "a.ndjson": "\n\n \n" + LINES,
    "lines.json": LINES,
    "array.json": "\ufeff " + json.dumps(ROWS, indent=2).replace("\n", "\r\n"),
    "short.json": json.dumps(ROWS, separators=(",", ":")),
    "under_a_key.json": json.dumps({"version": 1, "data": ROWS, "n": [1, 2]}),
    "only_key.json": json.dumps({"anything": ROWS}),
    "columns.json": json.dumps({"text": [row["text"] for row in ROWS]}, indent=1),
    "pretty.json": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "a.csv": 'text\néén\n\n"two, ""three""\nfour"\n',
    "bom.CSV": '\ufefftext\r\néén\r\n"two, ""three""\nfour"',
    "a.tsv": 'text\néén\n"two, ""three""\nfour"\n',
}


@pytest.mark.parametrize("name", TEXTS)
def test_every_form_of_text_gives_the_same_rows(read: Read, name: str) -> None:
    assert read(name, TEXTS[name].encode()) == ROWS


def test_the_last_endings_decide() -> None:
    for name, suffix in [
        ("a.JSONL", ".jsonl"),
        ("a.b.jsonl", ".jsonl"),
        ("a.b.json.gz", ".json.gz"),
        ("a.csv.ZST", ".csv.zst"),
        ("a.parquet.gz", ".parquet.gz"),
        ("a", ""),
        ("gz", ""),
        ("a.gz", ".gz"),
    ]:
        assert find_suffix(Path(name)) == suffix
    assert ".parquet.gz" not in READERS


@pytest.mark.parametrize("suffix", sorted(READERS))
def test_a_missing_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"gone{suffix}"
    with pytest.raises(DataError, match=rf"--data={path}: .*No such file"):
        list(READERS[suffix](path, "--data"))


@pytest.mark.parametrize("suffix", sorted(set(READERS) - DOCUMENTS))
@pytest.mark.parametrize("content", [b"", b"\n \n"], ids=["empty", "blank"])
def test_a_file_without_rows_is_an_error(
    read: Read, compress: Compress, suffix: str, content: bytes
) -> None:
    with pytest.raises(DataError, match=rf"--data.*a\{suffix}"):
        read(f"a{suffix}", compress(content, suffix))


@pytest.mark.parametrize("suffix", sorted(DOCUMENTS))
def test_a_blank_document_is_a_bad_row(read: Read, compress: Compress, suffix: str) -> None:
    for content in (b"", b" \n", b"\xef\xbb\xbf"):
        assert read(f"a{suffix}", compress(content, suffix)) == ["the file is blank"]


@pytest.mark.parametrize("suffix", [s for s in sorted(READERS) if s.count(".") == 2])
def test_a_compressed_file_gives_the_same_rows(read: Read, compress: Compress, suffix: str) -> None:
    kind = f".{suffix.split('.')[1]}"
    content = TEXTS.get(f"a{kind}", TEXTS["short.json"]).encode()
    expected = ROWS if kind not in DOCUMENTS else [{"text": content.decode()}]
    assert read(f"a{suffix}", compress(content, suffix)) == expected

import json
from pathlib import Path

import pytest

from bigft.data.readers.files import READERS, find_suffix
from bigft.errors import DataError

RECORDS = [{"text": "één"}, {"text": 'two, "three"\nfour'}]


def read(path: Path) -> list[dict[str, str]]:
    return [dict(record) for record, _ in READERS[find_suffix(path)](path, "--data")]


def test_all_kinds_of_files_give_the_same_records(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS)
    (tmp_path / "a.jsonl").write_text(lines + "\n\n")
    (tmp_path / "bom.jsonl").write_text("\ufeff" + lines.replace("\n", "\r\n"))
    (tmp_path / "lines.json").write_text(lines)
    (tmp_path / "array.json").write_text("\ufeff " + json.dumps(RECORDS, indent=2))
    (tmp_path / "a.csv").write_text('text\néén\n"two, ""three""\nfour"\n')
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "A.PARQUET")
    for path in sorted(tmp_path.iterdir()):
        assert read(path) == RECORDS, path


def test_a_text_file_is_one_record(tmp_path: Path) -> None:
    for name in ("a.txt", "a.md"):
        (tmp_path / name).write_text("one\n\ntwo\n")
        assert read(tmp_path / name) == [{"text": "one\n\ntwo\n"}]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": b}\n', r"a\.jsonl:2: not JSON .*'\{\"text\": b\}'"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', r"a\.jsonl:2: not an object"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r"a\.jsonl:2: not UTF-8 at byte 10"),
        ("a.jsonl", b"\n \n", "only blank lines"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1: not JSON"),
        ("a.json", b"[]", "the array is empty"),
        ("a.json", b'[{"text": "a"}, 3]', "item 2 is not an object: 3"),
        ("a.json", b'[{"text": "a"}', "not a JSON array"),
        ("a.csv", b"text\n", "no rows below its first one"),
        ("a.csv", b"text,id\na,1\nb\n", r"a\.csv:3: not the 2 fields"),
        ("a.csv", b"text\na,b\n", r"a\.csv:2: not the 1 fields"),
        ("a.csv", b"text\na\n\xff\n", "not UTF-8"),
        ("a.csv", b'text\n"a', "near line 1: unexpected end of data"),
        ("a.parquet", b"PAR1", "not a readable Parquet file"),
        ("a.txt", b" \n", "blank"),
        ("a.txt", b"a\xff", "not UTF-8 at byte 1"),
    ],
)
def test_damage_is_named_with_its_place(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read(tmp_path / name)


def test_a_long_csv_field_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "x" * 300_000 + "\n")
    assert len(read(tmp_path / "a.csv")[0]["text"]) == 300_000

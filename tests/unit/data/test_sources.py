import gzip
import json
import os
from pathlib import Path

import pytest

from bigft.data.sources import find_sources, read_sources
from bigft.errors import DataError

RECORDS = [{"text": "one"}, {"text": "two"}]


def write_jsonl(path: Path, records: list[dict[str, str]] = RECORDS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(spec: object) -> list[dict[str, str]]:
    return [dict(item.record) for item in read_sources(str(spec))]


def test_files_folders_and_globs_are_read_in_order(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "d" / "a.jsonl", [{"text": "a"}])
    two = write_jsonl(tmp_path / "d" / "deep" / "b.jsonl", [{"text": "b"}])
    (tmp_path / "d" / "notes.xyz").write_text("skipped in a folder")
    write_jsonl(tmp_path / "d" / ".hidden" / "c.jsonl")
    both = [{"text": "a"}, {"text": "b"}]
    assert read(tmp_path / "d") == both
    assert read(f"{two}, {one}") == both[::-1]
    assert read(tmp_path / "d" / "**" / "*.jsonl") == both


def test_records_say_where_they_stand(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl")
    assert [item.origin for item in read_sources(str(path))] == [f"{path}:1", f"{path}:2"]


def test_a_saved_data_set_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(RECORDS)
    saved.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "splits"))
    datasets.DatasetDict({"a": saved, "b": saved}).save_to_disk(str(tmp_path / "no_train"))
    assert read(tmp_path / "one") == RECORDS
    assert read(tmp_path / "splits") == RECORDS
    with pytest.raises(DataError, match=r"none of its splits \(a, b\) is called `train`"):
        read(tmp_path / "no_train")


def test_all_missing_files_are_named_with_their_neighbours(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl")
    with pytest.raises(DataError) as caught:
        find_sources(f"{tmp_path}/trian.jsonl,{tmp_path}/none/b.csv,{tmp_path}/*.csv", "--data")
    text = str(caught.value)
    assert "3 problems" in text
    assert f"--data={tmp_path}/trian.jsonl: no such file or folder" in text
    assert "there is train.jsonl" in text
    assert f"the folder {tmp_path}/none does not exist either" in text
    assert "no file fits this pattern" in text


def test_unusable_files_and_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "a.exe").write_text("x")
    (tmp_path / "folder").mkdir()
    for name, reason in [
        ("empty.jsonl", "the file is empty"),
        ("a.exe", "files ending in '.exe' are not known"),
        ("folder", "the folder holds no data"),
    ]:
        with pytest.raises(DataError, match=reason):
            find_sources(str(tmp_path / name), "--eval_data")
    with pytest.raises(DataError, match="--eval_data=' , ' names no data"):
        find_sources(" , ", "--eval_data")


def test_a_short_unknown_name_is_a_hub_id_and_says_why_it_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (source,) = find_sources("nobody/nothing")
    assert source.kind == "hub"
    with pytest.raises(DataError, match="--data=nobody/nothing: no such file.* as a hub id"):
        list(source.read())
    # With a folder of that name the same text is a mistyped path.
    (tmp_path / "nobody").mkdir()
    with pytest.raises(DataError, match="holds no data files"):
        find_sources("nobody/nothing")


def test_fingerprint_changes_with_the_file(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl")
    (source,) = find_sources(str(path))
    before = source.compute_fingerprint()
    assert source.compute_fingerprint() == before
    os.utime(path, ns=(1, 1))
    assert source.compute_fingerprint() != before


def test_compressed_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n{"text": "two"}\n'))
    assert read(path) == RECORDS
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match="cannot be read to its end"):
        read(path)

import json
from pathlib import Path
from typing import Any

from bigft.data.store.rejected import Rejected, append_rejected, dump_rejected, keep_rejected


def read(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]


def test_a_row_is_written_with_its_place_and_the_reason() -> None:
    for content in ({"text": "größer\n\u2028"}, "not JSON {", {"when": object()}, None):
        line = dump_rejected(Rejected("a.jsonl:3", "bad", content))
        assert "\n" not in line
        found = json.loads(line)
        assert list(found) == ["origin", "reason", "row"]
        assert (found["origin"], found["reason"]) == ("a.jsonl:3", "bad")
        if not isinstance(content, dict) or "when" not in content:
            assert found["row"] == content


def test_the_rows_of_all_stores_are_in_one_file(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one", "two", "three")]
    for file, text in zip(files, ['{"a": 1}\n', "", '{"a": 2}\n{"a": 3}\n'], strict=True):
        file.write_text(text)
    run = tmp_path / "run"
    run.mkdir()
    for _ in range(2):  # As when a run goes on: the file is made anew.
        keep_rejected(run, files)
        assert read(run) == [{"a": 1}, {"a": 2}, {"a": 3}]
    keep_rejected(run, files[1:2])
    assert not (run / "rejected.jsonl").exists()


def test_a_stream_adds_its_rows(tmp_path: Path) -> None:
    append_rejected(tmp_path, [])
    assert not (tmp_path / "rejected.jsonl").exists()
    append_rejected(tmp_path, [Rejected("a:1", "x", 1)])
    append_rejected(tmp_path, [Rejected("a:2", "y", 2), Rejected("a:3", "z", 3)])
    assert [line["origin"] for line in read(tmp_path)] == ["a:1", "a:2", "a:3"]

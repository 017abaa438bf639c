import json
from pathlib import Path
from typing import Any

from bigft.data.store.rejected import Rejected, RejectedLog, dump_rejected, keep_rejected


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


ROWS = [Rejected(f"a:{n}", "größer", n) for n in range(1, 6)]


def places(folder: Path) -> list[str]:
    return [line["origin"] for line in read(folder)]


def test_a_stream_adds_its_rows(tmp_path: Path) -> None:
    tell = RejectedLog(tmp_path, goes_on=False)
    tell([])
    assert not (tmp_path / "rejected.jsonl").exists()
    tell(ROWS[:1])
    tell(ROWS[1:3])
    assert places(tmp_path) == ["a:1", "a:2", "a:3"]


def test_a_row_that_a_stream_meets_again_is_written_once(tmp_path: Path) -> None:
    tell = RejectedLog(tmp_path, goes_on=False)
    tell([ROWS[0], ROWS[0]])
    tell(ROWS[:2])
    # The run is interrupted in the middle of a line, and goes on before it.
    with (tmp_path / "rejected.jsonl").open("a") as file:
        file.write('{"origin": "a:3", "rea')
    tell = RejectedLog(tmp_path, goes_on=True)
    tell(ROWS[1:4])
    assert places(tmp_path) == ["a:1", "a:2", "a:3", "a:4"]
    # Another run in the same folder starts anew.
    RejectedLog(tmp_path, goes_on=False)(ROWS[4:])
    assert places(tmp_path) == ["a:5"]


def test_a_run_that_goes_on_without_such_a_file_starts_one(tmp_path: Path) -> None:
    RejectedLog(tmp_path, goes_on=True)(ROWS[:1])
    assert places(tmp_path) == ["a:1"]

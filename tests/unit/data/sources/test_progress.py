"""The line that is shown while a large source is tokenised."""

import gzip
import json
from pathlib import Path

import pytest

from bigft.data.sources import progress as module
from bigft.data.sources.find import find_sources
from bigft.data.sources.progress import Progress
from bigft.data.store.prepare import open_store

ROW = json.dumps({"text": "some words"}) + "\n"


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def follow(spec: str, clock: Clock, every: int, seconds: float) -> list[str]:
    """Read a source, some seconds per some rows, and give the lines that are told."""
    (part,) = find_sources(spec)
    lines: list[str] = []
    progress = Progress(part.name, part.sources, lines.append)
    for number, _ in enumerate(progress.read(), 1):
        if number % every == 0:
            clock.now += seconds
            progress.show(number)
    return lines


def test_rows_rate_share_and_remaining_time_are_told(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "a.jsonl").write_text(ROW * 4000)
    assert follow(str(tmp_path / "a.jsonl"), clock, 1000, 20.0) == [
        "tokenising a: 1,000 rows, 50 rows/s, 25% read, 1m00s left",
        "tokenising a: 2,000 rows, 50 rows/s, 50% read, 40.0s left",
        "tokenising a: 3,000 rows, 50 rows/s, 75% read, 20.0s left",
        "tokenising a: 4,000 rows, 50 rows/s, 100% read, 0.0s left",
    ]


def test_there_are_ten_seconds_between_lines_and_before_the_first(
    tmp_path: Path, clock: Clock
) -> None:
    (tmp_path / "a.jsonl").write_text(ROW * 1000)
    assert follow(str(tmp_path / "a.jsonl"), clock, 10, 0.09) == []
    assert len(follow(str(tmp_path / "a.jsonl"), clock, 10, 0.25)) == 2


def test_of_other_files_only_those_that_are_complete_count(tmp_path: Path, clock: Clock) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress((ROW * 20).encode()))
    lines = follow(str(tmp_path), clock, 10, 10.0)
    assert lines[0].endswith("10 rows, 1 rows/s")
    assert lines[2].endswith("30 rows, 1 rows/s, 50% read, 30.0s left")


def test_where_nobody_knows_how_much_there_is_rows_are_told(clock: Clock) -> None:
    lines = follow("builtin", clock, 1000, 10.0)
    assert lines[0] == "tokenising builtin: 1,000 rows, 100 rows/s"


def test_it_is_shown_while_a_store_is_written(
    tmp_path: Path, make_section, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LINE_SECONDS", 0.0)
    (tmp_path / "a.jsonl").write_text(ROW * 1500)
    (part,) = find_sources(str(tmp_path / "a.jsonl"))
    lines: list[str] = []
    for _ in range(2):  # The second time it is in the cache.
        open_store(part, make_section(), tokenizer, lines.append)
    assert [line.split(", ")[0] for line in lines] == [
        f"tokenising a: {rows:,} rows" for rows in (512, 1024, 1500)
    ]

"""Labels that are found in the data."""

import json
from pathlib import Path

import pytest

from bigft.data.labels import count_targets, find_labels
from bigft.data.section import DataSection
from bigft.errors import DataError


@pytest.fixture
def make(tmp_path: Path):
    def write(*labels: object, key: str = "label") -> DataSection:
        file = tmp_path / "a.jsonl"
        rows = [json.dumps({"text": f"x{n}", key: label}) for n, label in enumerate(labels)]
        file.write_text("\n".join(rows))
        return DataSection(train=str(file), loading={"cache_dir": str(tmp_path / "cache")})

    return write


def test_names_are_sorted_and_counted(make):
    found = find_labels(make("b", "a", "b"))
    assert list(found.counts.items()) == [("a", 1), ("b", 2)]
    assert (found.is_multiple, found.num_rows) == (False, 3)


def test_numbers_are_sorted_as_numbers(make):
    assert list(find_labels(make(10, 9, "2", -1)).counts) == ["-1", "2", "9", "10"]


def test_lists_are_several_labels(make):
    found = find_labels(make(["b"], [], ["a", "b"], key="labels"))
    assert (found.counts, found.is_multiple, found.num_rows) == ({"a": 1, "b": 2}, True, 3)


def test_they_are_kept_until_the_data_change(make, monkeypatch):
    section = make("a", "b")
    find_labels(section)
    with monkeypatch.context() as patch:
        patch.setattr("bigft.data.labels.read_labels", lambda *_: pytest.fail("read again"))
        assert list(find_labels(section).counts) == ["a", "b"]
    assert list(find_labels(make("a", "b", "c")).counts) == ["a", "b", "c"]


def test_rows_that_cannot_be_read_are_passed_over(make):
    section = make("a", "b")
    with Path(section.train).open("a") as file:
        file.write('\n{"text": "", "label": "c"}\nnonsense\n{"text": "only"}\n')
    assert list(find_labels(section).counts) == ["a", "b"]


def test_data_without_labels_are_refused(make, tmp_path):
    file = tmp_path / "b.jsonl"
    file.write_text('{"text": "x"}\n')
    section = DataSection(train=str(file), loading={"cache_dir": str(tmp_path)})
    with pytest.raises(DataError, match="no row has a label"):
        find_labels(section)
    with pytest.raises(DataError, match="no row has a number"):
        count_targets(section)
    assert count_targets(make([1.0, 2.0], [3.0, 4.0])) == 2


def test_why_no_row_could_be_read_is_said(make):
    section = make("a", "b").model_copy(update={"columns": {"label": "lable"}})
    with pytest.raises(DataError, match=r"no row has a label.*a.jsonl:1: .*lable.*did you mean"):
        find_labels(section)

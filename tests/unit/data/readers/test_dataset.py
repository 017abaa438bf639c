from pathlib import Path

import datasets
import pytest

from bigft.data.readers.dataset import SPLIT, DatasetName, load_dataset, read_dataset
from bigft.errors import DataError

ROWS = [{"n": number} for number in range(10)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(str(folder / "one"))
    parts = {"train": rows, "test": rows.select(range(3))}
    datasets.DatasetDict(parts).save_to_disk(str(folder / "splits"))
    datasets.DatasetDict({"a": rows, "b": rows}).save_to_disk(str(folder / "no_train"))
    return folder


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("one", None, ROWS),
        ("one", "train", ROWS),
        ("one", "train[:20%]", ROWS[:2]),
        ("splits", None, ROWS),
        ("splits", "test", ROWS[:3]),
        ("splits", "train[8:]+test[-1:]", [*ROWS[8:], ROWS[2]]),
        ("no_train", "b[:1]", ROWS[:1]),
    ],
)
def test_splits_of_saved_data_sets(saved: Path, name: str, split: str | None, expected) -> None:
    dataset = DatasetName(str(saved / name), is_saved=True, split=split)
    rows = list(read_dataset(dataset, "--data"))
    assert [row.payload for row in rows] == expected
    assert rows[0].origin == f"{dataset}, row 1"


def test_a_split_that_is_missing_or_has_to_be_chosen_is_named(saved: Path) -> None:
    dataset = DatasetName(str(saved / "splits"), is_saved=True, split="validation")
    with pytest.raises(DataError, match=r"no such split: .*there is train \(10 rows\), test"):
        load_dataset(dataset, "--data")
    with pytest.raises(DataError, match=r"\(a, b\) is called `train`; choose one: .*no_train@a"):
        load_dataset(DatasetName(str(saved / "no_train"), is_saved=True), "--data")


@pytest.mark.parametrize(
    ("failure", "repair"),
    [
        (ConnectionError("Couldn't reach 'org/name' on the Hub"), "check the network, or give the"),
        (datasets.exceptions.DatasetNotFoundError("doesn't exist"), "check the id, or give the"),
    ],
)
def test_a_hub_id_that_cannot_be_loaded_is_told_with_the_repair(
    failure: Exception, repair: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=f"--data=org/name: no such file .*; {repair}"):
        load_dataset(DatasetName("org/name", is_saved=False), "--data")


def test_a_damaged_saved_data_set_is_an_error(tmp_path: Path, saved: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    for file in (saved / "one").iterdir():
        content = file.read_bytes()
        (folder / file.name).write_bytes(content[:50] if file.suffix == ".arrow" else content)
    with pytest.raises(DataError, match=f"--data={folder}: "):
        list(read_dataset(DatasetName(str(folder), is_saved=True), "--data"))


@pytest.mark.parametrize("streaming", [False, True])
def test_the_hub_is_asked_for_subset_split_and_stream(
    monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    def load(*args: object, **kwargs: object) -> list[dict[str, int]]:
        assert args == ("org/name", "sub")
        assert kwargs == {"split": "train[:10%]", "streaming": streaming}
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load)
    dataset = DatasetName("org/name", is_saved=False, subset="sub", split="train[:10%]")
    rows = list(read_dataset(dataset, "--data", streaming=streaming))
    assert rows[9].origin == "org/name/sub@train[:10%], row 10"


def test_a_broken_download_names_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows():
        yield ROWS[0]
        raise ConnectionError("gone")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows())
    dataset = DatasetName("org/name", is_saved=False)
    with pytest.raises(DataError, match="cannot be read on after row 1: ConnectionError: gone"):
        list(read_dataset(dataset, "--data"))


def test_what_looks_like_a_split() -> None:
    for text in ("train", "train[:10%]", "train[10:-20]", "a.b[:5%](pct1_dropremainder)+test"):
        assert SPLIT.fullmatch(text), text
    for text in ("", "v1/*", "train[", "a+", "train[12]", "*"):
        assert not SPLIT.fullmatch(text), text

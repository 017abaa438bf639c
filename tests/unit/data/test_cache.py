from pathlib import Path

import pytest

from bigft.data.cache import default_cache_dir, write_once, write_text_atomically
from bigft.errors import DataError


def test_cache_folder_follows_the_setting_then_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_cache_dir("/given") == Path("/given")
    assert default_cache_dir(None) == Path("/x/bigft")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir(None) == Path.home() / ".cache" / "bigft"


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_once(tmp_path / "a" / "b", write)
    assert list((tmp_path / "a").iterdir()) == []


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    def write_slowly(folder: Path) -> None:
        write_once(tmp_path / "a", lambda other: (other / "who").write_text("first") and None)
        (folder / "who").write_text("second")

    write_once(tmp_path / "a", write_slowly)
    assert (tmp_path / "a" / "who").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_cache_that_cannot_be_written_is_named_with_the_repair(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for write in (
        lambda: write_once(tmp_path / "file" / "a", lambda _: None),
        lambda: write_text_atomically(tmp_path / "file" / "a", "x"),
    ):
        with pytest.raises(DataError, match=r"file cannot be written.*--data\.loading\.cache_dir"):
            write()


def test_a_text_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_text_atomically(tmp_path / "note", text)
        assert (tmp_path / "note").read_text() == text
    assert len(list(tmp_path.iterdir())) == 1

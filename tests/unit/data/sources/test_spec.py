from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigft.data.sources.spec import choose_names, split_spec, split_weight
from bigft.errors import DataError


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("a.jsonl", ("a.jsonl", None)),
        ("a.jsonl:3", ("a.jsonl", 3.0)),
        ("a.jsonl: 0.5", ("a.jsonl", 0.5)),
        ("builtin:1e-3", ("builtin", 0.001)),
        ("org/name@train[:10%]", ("org/name@train[:10%]", None)),
        ("org/name@train[:10%]:2", ("org/name@train[:10%]", 2.0)),
        ("https://host/a.jsonl", ("https://host/a.jsonl", None)),
    ],
)
def test_a_weight_stands_behind_the_last_colon(part: str, expected: object) -> None:
    assert split_weight(part, "--data") == expected


@pytest.mark.parametrize("weight", ["0", "-1", "x", "", "nan", "inf", "-inf"])
def test_a_weight_is_a_positive_number(weight: str) -> None:
    with pytest.raises(DataError, match=r"--data=a:.* is not a positive number; write NAME:2"):
        split_weight(f"a:{weight}", "--data")


def test_weights_can_be_forbidden() -> None:
    with pytest.raises(DataError, match="weights are for training data only; write --eval_data a"):
        split_weight("a:2", "--eval_data", weighted=False)
    assert split_weight("a", "--eval_data", weighted=False) == ("a", None)


def test_files_that_exist_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a:3", "a", "b,c.jsonl", "b", "d,e:5"):
        (tmp_path / name).touch()
    assert split_weight("a:3", "--data") == ("a:3", None)
    assert split_weight("a:3:4", "--data") == ("a:3", 4.0)
    assert split_weight("d,e:5", "--data") == ("d,e:5", None)
    spec = "b, b,c.jsonl , b,c.jsonl:2,,x,y , d,e:5"
    assert split_spec(spec) == ["b", "b,c.jsonl", "b,c.jsonl:2", "x", "y", "d,e:5"]


def test_an_overlong_name_is_no_file() -> None:
    assert split_spec("a" * 5000 + ",b\0:2") == ["a" * 5000, "b\0:2"]


def test_names_are_short_where_they_can_be() -> None:
    wishes = [("a", "x-a"), ("b", "x-b"), ("b", "y-b"), ("b", "y-b"), ("", ""), ("ü b", "x")]
    assert choose_names(wishes) == ["a", "x-b", "y-b", "y-b-2", "data", "x"]


@given(st.lists(st.tuples(st.text(max_size=80), st.text(max_size=80)), max_size=6))
def test_names_are_unique_and_plain(wishes: list[tuple[str, str]]) -> None:
    names = choose_names(wishes)
    assert len(set(names)) == len(names) == len(wishes)
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert all(name and set(name) <= allowed for name in names)

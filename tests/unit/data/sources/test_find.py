import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest

from bigft.data.readers.raw import RawRow, parse
from bigft.data.sources.find import Source, find_sources, read_sources
from bigft.errors import DataError

ROWS = [{"text": "one"}, {"text": "two"}]


def write_jsonl(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(spec: object) -> list[Any]:
    return [parse(row) for row in read_sources(str(spec))]


def find_one(spec: object) -> Source:
    ((source,),) = (part.sources for part in find_sources(str(spec)))
    return source


def test_files_folders_and_globs_are_read_in_order(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "d" / "a.jsonl", [{"text": "a"}])
    two = write_jsonl(tmp_path / "d" / "deep" / "b.jsonl", [{"text": "b"}])
    (tmp_path / "d" / "notes.xyz").write_text("skipped in a folder")
    (tmp_path / "d" / "README.md").write_text("about the data")
    write_jsonl(tmp_path / "d" / ".hidden" / "c.jsonl")
    both = [{"text": "a"}, {"text": "b"}]
    assert read(tmp_path / "d") == both
    assert read(f"{two}, {one}") == both[::-1]
    assert read(tmp_path / "d" / "**" / "*.jsonl") == both
    (tmp_path / "d" / "deep" / "up").symlink_to(tmp_path / "d")
    assert read(tmp_path / "d") == both


def test_a_folder_of_documents_is_read_with_its_readme(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("a")
    (tmp_path / "z.txt").write_text("b")
    assert read(tmp_path) == [{"text": "a"}, {"text": "b"}]


def test_parts_have_weights_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x/train.jsonl", "y/train.jsonl", "z/a b.jsonl", "w/c.jsonl", "v:2,u/d.jsonl"):
        write_jsonl(tmp_path / name)
    (tmp_path / "z" / "e.csv.gz").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    spec = "x/train.jsonl:3,y/train.jsonl,z,builtin:.5,w/*.jsonl,z/e.csv.gz,v:2,u,org/n@train[:1]:2"
    parts = find_sources(spec)
    assert [(part.name, part.weight) for part in parts] == [
        ("x-train", 3.0),
        ("y-train", None),
        ("z", None),
        ("builtin", 0.5),
        ("w", None),
        ("e", None),
        ("v-2-u", None),
        ("n", 2.0),
    ]
    names = [source.name for source in parts[2].sources]
    assert names == [str(Path("z/a b.jsonl")), str(Path("z/e.csv.gz"))]


def test_rows_say_where_they_stand(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl")
    assert [row.origin for row in read_sources(str(path))] == [f"{path}:1", f"{path}:2"]


def test_the_builtin_corpus_is_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigft.data.sources.find.read_corpus", lambda: iter([("json", ROWS[0])]))
    assert list(read_sources("builtin")) == [RawRow(ROWS[0], "builtin:json")]


def test_built_in_sets_have_weights_names_and_fingerprints_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "bigft.data.sources.find.read_derived", lambda name: iter([("json", {"text": name})])
    )
    parts = find_sources("builtin/modules:2,builtin, builtin/code:.5")
    assert [(part.name, part.weight) for part in parts] == [
        ("builtin-modules", 2.0),
        ("builtin", None),
        ("builtin-code", 0.5),
    ]
    ((modules,), _, (code,)) = (part.sources for part in parts)
    assert (modules.kind, modules.name) == ("builtin", "builtin/modules")
    assert list(modules.read()) == [RawRow({"text": "modules"}, "builtin/modules:json")]
    assert list(code.read()) == [RawRow({"text": "code"}, "builtin/code:json")]
    assert len({source.compute_fingerprint() for part in parts for source in part.sources}) == 3
    with pytest.raises(DataError, match=r"weights are .*; write --eval_data builtin/modules"):
        find_sources("builtin/modules:2", "--eval_data", weighted=False)


def test_an_unknown_built_in_set_is_an_error_with_the_known_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        find_sources("builtin/moduls:2,builtin/zzz,builtin/", "--data")
    first, second, third = str(caught.value).split("\n")[1:]
    known = "; known: builtin/modules, builtin/pairs, builtin/topics, "
    no_such = "no such built-in data"
    assert f"--data=builtin/moduls: {no_such}; did you mean builtin/modules?{known}" in first
    assert f"--data=builtin/zzz: {no_such}{known}" in second
    assert f"--data=builtin/: {no_such}{known}" in third


def test_a_folder_may_be_called_builtin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.jsonl", "modules.jsonl"):
        write_jsonl(tmp_path / "builtin" / name)
    assert read("builtin/mine.jsonl") == ROWS
    assert find_one("builtin/modules").kind == "builtin"
    assert read("./builtin/modules.jsonl") == ROWS
    with pytest.raises(DataError, match="there is mine.jsonl"):
        find_sources("builtin/mien.jsonl")
    # Without the folder before it, a name is no built-in set.
    write_jsonl(tmp_path / "code" / "a.jsonl")
    assert read("code") == ROWS


def test_saved_data_sets_are_read_wherever_they_stand(tmp_path: Path) -> None:
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(str(tmp_path / "d" / "one"))
    datasets.DatasetDict({"train": saved, "test": saved.select([0])}).save_to_disk(
        str(tmp_path / "d" / "two")
    )
    write_jsonl(tmp_path / "d" / "three.jsonl", [{"text": "three"}])
    assert read(tmp_path / "d" / "one") == ROWS
    assert read(f"{tmp_path}/d/two@test") == ROWS[:1]
    assert read(tmp_path / "d") == [*ROWS, {"text": "three"}, *ROWS]
    with pytest.raises(DataError, match="is no data set saved by `datasets` and has no splits"):
        find_sources(f"{tmp_path}/d@train")


def test_splits_of_one_folder_have_fingerprints_of_their_own(tmp_path: Path) -> None:
    saved = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(str(tmp_path / "d"))
    names = (f"{tmp_path}/d", f"{tmp_path}/d@test", f"{tmp_path}/d@test[:1]")
    assert len({find_one(name).compute_fingerprint() for name in names}) == 3


def test_fingerprint_changes_with_the_file(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl")
    source = find_one(path)
    before = source.compute_fingerprint()
    assert source.compute_fingerprint() == before
    os.utime(path, ns=(1, 1))
    assert source.compute_fingerprint() != before


def test_all_problems_are_named_together(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "a.exe").write_text("x")
    spec = ",".join(
        f"{tmp_path}/{name}"
        for name in ("trian.jsonl", "none/b.csv", "*.csv", "[ae]*", "train.jsonl:0")
    )
    with pytest.raises(DataError) as caught:
        find_sources(spec, "--data")
    text = str(caught.value)
    assert text.startswith("6 problems:\n1. ")
    assert f"--data={tmp_path}/trian.jsonl: no such file or folder" in text
    assert "there is train.jsonl" in text
    assert f"the folder {tmp_path}/none does not exist either" in text
    assert "no file fits this pattern" in text
    assert "a.exe: files ending in '.exe' are not known; known are .jsonl, .ndjson" in text
    assert "empty.jsonl: the file is empty (0 bytes)" in text
    assert "the weight '0' is not a positive number" in text


def test_a_name_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for spec, reason in [
        (tmp_path / "folder", "the folder holds no data; looked for .jsonl"),
        (" , ", "--eval_data=' , ' names no data"),
        ("s3://bucket/a.jsonl", "addresses are not read"),
        ("~nobody-here/a.jsonl", "no such file or folder"),
        ("x" * 5000, "File name too long"),
    ]:
        with pytest.raises(DataError, match=reason):
            find_sources(str(spec), "--eval_data")
    with pytest.raises(DataError, match="weights are for training data only"):
        find_sources("builtin:2", "--eval_data", weighted=False)


@pytest.mark.parametrize(
    ("spec", "path", "subset", "split"),
    [
        ("org/name", "org/name", None, None),
        ("org/name/sub.en", "org/name", "sub.en", None),
        ("org/name@test", "org/name", None, "test"),
        ("org/name/sub@train[:10%]:2", "org/name", "sub", "train[:10%]"),
        ("squad", "squad", None, None),
        ("squad@validation+train[5:]", "squad", None, "validation+train[5:]"),
    ],
)
def test_hub_ids_have_subsets_and_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, path: str, subset: Any, split: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    source = find_one(spec)
    assert source.kind == "hub"
    assert source.dataset is not None
    assert (source.dataset.path, source.dataset.subset, source.dataset.split) == (
        path,
        subset,
        split,
    )


def test_a_mistyped_path_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "data" / "train.jsonl")
    for spec in ("daat", "data/trian", "data/x/trian@train", "squad.jsonl", "org/squad.csv", "./a"):
        with pytest.raises(DataError, match=f"--data={spec.split('@')[0]}: no such file or folder"):
            find_sources(spec)
    with pytest.raises(DataError, match="there is data"):
        find_sources("daat")


def test_a_hub_id_says_why_it_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for spec in ("nobody/nothing", "nothing", "nobody/nothing/sub@train[:10%]"):
        source = find_one(spec)
        for streaming in (False, True):
            with pytest.raises(DataError) as caught:
                list(source.read(streaming=streaming))
            text = str(caught.value)
            assert f"--data={spec}: no such file or folder here, and as a hub id" in text

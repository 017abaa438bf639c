"""GLUE by the names of its tasks, from folders that `datasets` saved in GLUE's own columns."""

import random
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from bigft.data.example import Labelled
from bigft.data.formats.table import Recognizer
from bigft.data.labels import find_labels
from bigft.data.section import DataSection
from bigft.data.sources.find import find_sources, read_sources
from bigft.data.sources.glue import TASKS, name_dev_sets
from bigft.errors import DataError

TEXTS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "stsb": ("sentence1", "sentence2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}
CLASSES = {
    "mrpc": ["not_equivalent", "equivalent"],
    "mnli": ["entailment", "neutral", "contradiction"],
}


def save_task(folder: Path, name: str, rows: int = 6) -> None:
    """A task as `load_dataset("nyu-mll/glue", name).save_to_disk` leaves it."""
    columns, chooser = TEXTS[name], random.Random(0)
    names = CLASSES.get(name, ["no", "yes"])
    label = Value("float32") if name == "stsb" else ClassLabel(names=names)
    features = Features(
        {**{c: Value("string") for c in columns}, "label": label, "idx": Value("int32")}
    )

    def build(split: str) -> Dataset:
        hidden = split.startswith("test")
        labels = [chooser.choice(range(len(names))) for _ in range(rows)]
        found: dict[str, list[Any]] = {
            **{c: [f"{split} {c} {n}" for n in range(rows)] for c in columns},
            "label": [-1] * rows if hidden else labels,
            "idx": list(range(rows)),
        }
        return Dataset.from_dict(found, features=features)

    tests = [split.replace("validation", "test") for split in TASKS[name].dev_sets]
    splits = ["train", *TASKS[name].dev_sets, *tests]
    DatasetDict({split: build(split) for split in splits}).save_to_disk(folder)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(spec: str) -> list[Labelled]:
    recognizer = Recognizer()
    found = [recognizer.read(raw.payload)[1] for raw in read_sources(spec)]
    assert all(isinstance(example, Labelled) for example in found)
    return found


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_read_in_its_own_columns(here: Path, name: str) -> None:
    save_task(here / "glue" / name, name)
    first, second = (*TEXTS[name], None)[:2]
    (example, *_), rows = read(f"glue/{name}"), len(read(f"glue/{name}"))
    assert rows == 6
    assert example.text == f"train {first} 0"
    assert example.second == (second and f"train {second} 0")
    dev_sets = name_dev_sets(f"glue/{name}")
    assert [one.text for one in read(dev_sets)] == [
        f"{split} {first} {n}" for split in TASKS[name].dev_sets for n in range(6)
    ]
    parts = find_sources(dev_sets, "--eval_data")
    assert [part.name for part in parts] == [f"{name}-{one}" for one in TASKS[name].dev_sets]
    for split in ("test", "test[:10%]", "test_matched"):
        with pytest.raises(DataError, match=f"hides the labels.*glue/{name}@validation"):
            find_sources(f"glue/{name}@{split}")


def test_classes_keep_their_numbers(here: Path) -> None:
    save_task(here / "glue/mrpc", "mrpc", rows=30)
    section = DataSection(train="glue/mrpc", loading={"cache_dir": str(here / "cache")})
    # The second one is `equivalent`, which F1 asks for.
    assert list(find_labels(section).counts) == ["0", "1"]


def test_without_a_folder_the_hub_is_asked_for_the_task(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(*args: Any, **named: Any) -> Any:
        asked.append((*args, named["split"]))
        return Dataset.from_dict({"sentence": ["a"], "label": [1]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read("glue/sst2@validation") == [Labelled("a", 1)]
    assert asked[-1] == ("nyu-mll/glue", "sst2", "validation")
    # No task of GLUE: another id of the hub, as ever.
    (part,) = find_sources("glue/sst3")
    assert part.sources[0].name == "glue/sst3"
    assert name_dev_sets("glue/sst3") is None
    assert name_dev_sets("glue/rte:2,glue/rte") == "glue/rte@validation"

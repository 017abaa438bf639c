"""The tasks of GLUE by name: `glue/sst2`, `glue/mnli@validation_mismatched`.

Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
Understanding", arXiv 1804.07461. Labels keep their numbers: 1 is what F1 asks for.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from bigft.data.sources.spec import split_spec, split_weight
from bigft.errors import DataError

HUB_ID = "nyu-mll/glue"
_PREFIX = "glue/"


@dataclass(frozen=True)
class GlueTask:
    """What is special about a task."""

    metrics: tuple[str, ...] = ("accuracy",)
    """By which GLUE judges it; their mean is its score."""

    task: str = "classification"
    """The `--task` that it is."""

    dev_sets: tuple[str, ...] = ("validation",)
    """Splits to evaluate on. Those for the test have no labels: each is -1."""


TASKS = {
    "cola": GlueTask(("matthews",)),
    "sst2": GlueTask(),
    "mrpc": GlueTask(("accuracy", "f1")),
    "qqp": GlueTask(("accuracy", "f1")),
    "stsb": GlueTask(("pearson", "spearman"), "regression"),
    "mnli": GlueTask(dev_sets=("validation_matched", "validation_mismatched")),
    "qnli": GlueTask(),
    "rte": GlueTask(),
    "wnli": GlueTask(),
}


def find_glue_task(name: str) -> str | None:
    """Return the task of a name in `--data`, with or without its split; None: it is no task."""
    base = name.partition("@")[0]
    task = base.removeprefix(_PREFIX)
    return task if base.startswith(_PREFIX) and task in TASKS else None


def check_split(name: str, split: str, flag: str) -> None:
    """Refuse the rows of a task whose labels are hidden.

    Raises:
        DataError: The split is for the test.
    """
    task = find_glue_task(name)
    if task is not None and split.startswith("test"):
        dev_sets = " or ".join(f"{_PREFIX}{task}@{one}" for one in TASKS[task].dev_sets)
        raise DataError(
            f"{flag}={name}@{split}: GLUE hides the labels of its tests, each is -1; use {dev_sets}"
        )


def list_tasks(spec: str, flag: str = "--data") -> list[str] | None:
    """List the tasks that a setting names; None where it names anything else, or a split."""
    names = [split_weight(part, flag)[0] for part in split_spec(spec)]
    tasks = [find_glue_task(name) for name in names]
    if not tasks or None in tasks or any("@" in name for name in names):
        return None
    return [task for task in tasks if task]


def name_dev_sets(spec: str, flag: str = "--data") -> str | None:
    """Name what GLUE evaluates the tasks of a setting on; None where it names anything else."""
    tasks = list_tasks(spec, flag)
    return None if tasks is None else ",".join(dict.fromkeys(_list_dev_sets(tasks)))


def _list_dev_sets(tasks: list[str]) -> Iterator[str]:
    for task in tasks:
        yield from (f"{_PREFIX}{task}@{split}" for split in TASKS[task].dev_sets)

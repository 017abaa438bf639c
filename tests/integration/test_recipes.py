"""Every recipe runs as it is on built-in models and data; what it learns is worth something."""

from pathlib import Path
from typing import Any

import pytest
from small_runs import ROOT, ds_config, read_metrics

pytestmark = pytest.mark.distributed

# One needs a model and a teacher: tests/integration/test_compress.py runs it.
RECIPES = sorted(
    path.stem
    for path in (ROOT / "launch_scripts/recipes").glob("*.yaml")
    if path.stem != "prune_and_distill"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def _run(pool: Any, name: str, folder: Path, cache: Path, **changes: Any) -> dict[str, Any]:
    settings = {
        "recipe": ROOT / f"launch_scripts/recipes/{name}.yaml",
        "data.loading.cache_dir": cache,
        **changes,
    }
    pool.run("runs:train", settings, str(folder), ds_config("zero3"))
    return [row for row in read_metrics(folder) if "eval_loss" in row][-1]


def _train_teacher(pool: Any, folder: Path, cache: Path) -> Path:
    """The first command of the recipe's header, but for its length."""
    settings = {
        "data.train_on": "all",
        "max_length": 256,
        "per_device_train_batch_size": 4,
        "max_steps": 1,
        "learning_rate": 1e-3,
        "evaluation.max_eval_batches": 1,
        "data.loading.cache_dir": cache,
    }
    pool.run("runs:train", settings, str(folder), ds_config("zero3"))
    return folder / "model"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_as_it_is(one_rank, tmp_path, cache, name):
    short = {"max_steps": 2, "eval_steps": 0, "evaluation.max_eval_batches": 1}
    if name == "distillation":
        teacher = _train_teacher(one_rank, tmp_path / "teacher", cache)
        short["task.distillation.teacher"] = teacher
    found = _run(one_rank, name, tmp_path / "run", cache, **short)
    assert found["step"] == 2
    assert (tmp_path / "run/model/model.safetensors").is_file()


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "metric", "least"),
    [
        # The largest of 22 classes has 8% of the rows; the mean has r2 0.
        ("classification", "eval_accuracy", 0.6),
        ("regression", "eval_r2", 0.2),
        # The most frequent token is 6.4% of what is to be written, 3.8% of what is hidden.
        ("translation", "eval_token_accuracy", 0.15),
        ("masked_lm", "eval_token_accuracy", 0.15),
        # A 7-million-parameter decoder that only knew frequencies would stay at 3.8%, too.
        ("code", "eval_token_accuracy", 0.25),
        ("multi_task", "eval_accuracy/module", 0.7),
        ("multi_task", "eval_r2/read", 0.4),
    ],
)
def test_a_recipe_beats_the_majority(one_rank, tmp_path, cache, name, metric, least):
    assert _run(one_rank, name, tmp_path / "run", cache)[metric] > least

"""What real runs send, counted at torch's collectives, against the plan of the same run."""

import os
from collections import defaultdict

import pytest
from small_runs import ds_config, small_settings

from bigft.cli import parse
from bigft.planner.forecast import forecast
from bigft.run.job import plan_run
from bigft.run.resolve import resolve

pytestmark = pytest.mark.distributed

ZERO = "ds.zero_optimization"
HALF = "gradient_accumulation_steps"

OWN = 4096
"""Bytes of a step that are bigft's own: losses, numbers of tokens, norms, requests to stop."""


def _predict(settings, config, ranks, local):
    flags = (f"--{name}={value}" for name, value in settings.items())
    environ = {"WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(local), "DS_ACCELERATOR": "cpu"}
    resolved = resolve(parse(["train", "--config", config, *flags]), {**os.environ, **environ})
    found = defaultdict(float)
    plan = forecast(*plan_run(resolved, environ))
    for flow in plan.work.flows:
        found[flow.kind, flow.ranks] += flow.num_bytes
    return found, plan


def _count(pool, settings, folder, config):
    """The bytes of a step, as all are once DeepSpeed has learned the order of modules."""
    steps, _ = pool.run("traffic:train_counting", settings, str(folder), config)[0]
    settled = steps[2:]
    sums = [{key: sum(calls) for key, calls in step.items()} for step in settled]
    assert all(one == sums[0] for one in sums)
    return sums[0], {key: len(calls) for key, calls in settled[0].items()}


def _find_differences(counted, predicted, tolerance=0.01):
    """Collectives of which more or less was sent than planned: key -> bytes counted and planned."""
    pairs = {
        key: (counted.get(key, 0), predicted.get(key, 0))
        for key in counted.keys() | predicted.keys()
    }
    return {
        key: (got, wanted)
        for key, (got, wanted) in pairs.items()
        if got != pytest.approx(wanted, rel=tolerance, abs=OWN)
    }


# Stage by its file, micro-batches, model, more settings.
DEFAULT = [
    ("zero1", 4, "model", {}),
    ("zero2", 4, "tied", {}),
    ("zero3", 1, "tied", {}),
    ("zero3", 4, "model", {}),
]
REST = [
    ("zero1", 1, "model", {}),
    ("zero1", 1, "tied", {}),
    ("zero1", 4, "tied", {}),
    ("zero2", 1, "model", {}),
    ("zero2", 1, "tied", {}),
    ("zero2", 4, "model", {}),
    ("zero2_offload", 4, "model", {}),
    ("zero3", 1, "model", {}),
    ("zero3", 4, "tied", {}),
    ("zero3_offload", 4, "model", {}),
    ("zero2", 4, "model", {f"{ZERO}.stage": 0}),
    ("zero2", 4, "model", {f"{ZERO}.use_multi_rank_bucket_allreduce": "false"}),
    ("zero3", 2, "model", {"ds.bf16.enabled": "false"}),
    ("zero3", 2, "model", {"model.freeze": "embed"}),
]


@pytest.mark.parametrize(
    ("config", "micro_batches", "model", "more"),
    [*DEFAULT, *(pytest.param(*case, marks=pytest.mark.nightly) for case in REST)],
    ids=lambda value: str(value) if isinstance(value, str | int) else "_".join(value),
)
def test_a_step_sends_what_was_planned(
    two_ranks, shared_folder, tmp_path, config, micro_batches, model, more
):
    changes = {HALF: micro_batches, "data.eval_fraction": 0, **more}
    settings = small_settings(shared_folder, model=shared_folder / model, **changes)
    predicted, plan = _predict(settings, ds_config(config), 2, 2)
    counted, calls = _count(two_ranks, settings, tmp_path / "run", ds_config(config))
    assert _find_differences(counted, predicted) == {}
    # Those that bigft makes are few, too.
    planned = sum(flow.calls for flow in plan.work.flows)
    assert planned - 8 <= sum(calls.values()) <= planned * 1.2 + 8


@pytest.fixture
def four_ranks():
    from ranks import RankPool

    pool = RankPool(4)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory):
    from making import make_model

    folder = tmp_path_factory.mktemp("deep") / "model"
    return make_model(folder, num_hidden_layers=12, tie_word_embeddings=True, seed=2)


@pytest.mark.nightly
@pytest.mark.parametrize("checkpointing", ["full", "none"])
@pytest.mark.parametrize(
    ("reach", "live"), [(0, 10**9), (0, 50_000), (300_000, 10**9), (10**9, 10**9)]
)
def test_weights_that_stay_gathered_are_not_sent_again(
    two_ranks, shared_folder, deep_model, tmp_path, reach, live, checkpointing
):
    changes = {HALF: 2, "data.eval_fraction": 0, f"{ZERO}.stage3_max_reuse_distance": reach}
    changes[f"{ZERO}.stage3_max_live_parameters"] = live
    changes["activation_checkpointing"] = checkpointing
    settings = small_settings(shared_folder, model=deep_model, **changes)
    predicted, _ = _predict(settings, ds_config("zero3"), 2, 2)
    counted, _ = _count(two_ranks, settings, tmp_path / "run", ds_config("zero3"))
    print("gathered", counted["all_gather", 2], "planned", predicted["all_gather", 2])
    assert _find_differences(counted, predicted, 0.1) == {}


@pytest.mark.nightly
@pytest.mark.parametrize("group", [1, 2])
def test_second_shards_keep_weights_inside_a_host(
    four_ranks, shared_folder, deep_model, tmp_path, group
):
    changes = {HALF: 2, "data.eval_fraction": 0, f"{ZERO}.zero_hpz_partition_size": group}
    settings = small_settings(shared_folder, model=deep_model, **changes)
    predicted, _ = _predict(settings, ds_config("zero3"), 4, 2)
    counted, _ = _count(four_ranks, settings, tmp_path / "run", ds_config("zero3"))
    assert _find_differences(counted, predicted) == {}
    # Groups of one are no groups: then every gather goes to all ranks.
    assert (("all_gather", 2) in counted) == (group == 2)

"""The global batch of a checkpoint on another number of ranks."""

from typing import Any

import pytest

from bigft.cli import parse
from bigft.errors import CheckpointError
from bigft.run.elastic import keep_global_batch, keep_launched_batch
from bigft.run.record import record
from bigft.run.resolve import resolve
from bigft.run.resolved import Resolved

CONFIG = "ds_configs/zero3.json"


def resolve_batch(micro: int, accumulated: int, ranks: int) -> Resolved:
    flags = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulated}
    words = [f"--{name}={value}" for name, value in flags.items()]
    return resolve(parse(["train", "--config", CONFIG, *words]), {"WORLD_SIZE": str(ranks)})


def saved_by(resolved: Resolved) -> dict[str, Any]:
    micro, accumulated = find_batch(resolved)
    return {
        "world_size": resolved.world_size,
        "global_batch_size": resolved.ds["train_batch_size"],
        "asked_batch": list(resolved.asked_batch or (micro, accumulated)),
    }


def find_batch(resolved: Resolved) -> tuple[int, int]:
    ds = resolved.ds
    return ds["train_micro_batch_size_per_gpu"], ds["gradient_accumulation_steps"]


def test_the_same_command_goes_on_again_and_again_on_fewer_ranks():
    first = resolve_batch(2, 1, ranks=2)
    second = keep_global_batch(resolve_batch(2, 1, ranks=1), saved_by(first), 1)
    third = keep_global_batch(resolve_batch(2, 1, ranks=1), saved_by(second), 1)
    fourth = keep_global_batch(resolve_batch(2, 1, ranks=2), saved_by(third), 2)
    assert [find_batch(one) for one in (second, third, fourth)] == [(2, 2), (2, 2), (2, 1)]
    assert {one.ds["train_batch_size"] for one in (second, third, fourth)} == {4}


def test_another_batch_on_as_many_ranks_is_a_setting():
    saved = saved_by(keep_global_batch(resolve_batch(2, 1, 1), saved_by(resolve_batch(2, 1, 2)), 1))
    other = resolve_batch(3, 1, ranks=1)
    assert keep_global_batch(other, saved, 1) is other
    # Written before the batch that was asked for was kept.
    del saved["asked_batch"]
    same = resolve_batch(2, 1, ranks=1)
    assert keep_global_batch(same, saved, 1) is same


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(CheckpointError, match="3 ranks cannot share evenly; use 1, 2, 4 ranks"):
        keep_global_batch(resolve_batch(2, 1, 3), saved_by(resolve_batch(2, 1, 2)), 3)


def test_what_is_recorded_of_a_changed_batch_repeats_the_run(tmp_path):
    changed = keep_global_batch(resolve_batch(2, 1, 1), saved_by(resolve_batch(2, 1, 2)), 1)
    record(changed, {}, tmp_path)
    files = [
        f"--config={tmp_path}/resolved/ds_config.json",
        f"--recipe={tmp_path}/resolved/run.yaml",
    ]
    again = resolve(parse(["train", *files]), {})
    assert find_batch(again) == (2, 2)
    assert again.ds == changed.ds
    assert changed.origin["ds.gradient_accumulation_steps"].startswith("derived: the run's 4")


def test_a_launch_on_fewer_ranks_keeps_the_batch_of_its_first_start():
    changed = keep_launched_batch(resolve_batch(2, 1, ranks=2), "6", 2)
    assert find_batch(changed) == (1, 3)
    assert "more ranks at the first start, 2 now" in changed.announced[-1]


def test_a_launch_on_all_its_ranks_changes_nothing():
    resolved = resolve_batch(2, 1, ranks=3)
    assert keep_launched_batch(resolved, "6", 3) is resolved
    assert keep_launched_batch(resolved, None, 3) is resolved


def test_a_launch_on_ranks_that_cannot_share_is_refused():
    with pytest.raises(CheckpointError, match="launched with 6 sequences per step, which 4 ranks"):
        keep_launched_batch(resolve_batch(2, 1, ranks=4), "6", 4)

"""What a run that goes on is compared with."""

from pathlib import Path
from typing import Any

import pytest

from bigft.checkpoint.manifest import write_manifest
from bigft.checkpoint.resume import check_fits, describe_changes
from bigft.errors import CheckpointError

FACTS: dict[str, Any] = {
    "optimizer": "adamw",
    "parameters": 92016,
    "global_batch_size": 4,
    "data": "7abf",
    "seed": 42,
    "settings": {"data.train": "chat.jsonl", "data.max_length": 64, "optim.learning_rate": 1e-3},
    "versions": {"torch": "2.13.0"},
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "step_00000004"
    folder.mkdir()
    write_manifest(folder, {"step": 4, **FACTS})
    return folder


def test_the_same_run_goes_on_and_has_nothing_to_say(saved):
    assert describe_changes(check_fits(saved, FACTS), FACTS) == []


def test_other_data_are_named_and_not_only_their_digest(saved):
    settings = {**FACTS["settings"], "data.max_length": 80, "optim.learning_rate": 5e-4}
    with pytest.raises(CheckpointError) as caught:
        check_fits(saved, {**FACTS, "data": "a7db", "settings": settings})
    text = str(caught.value)
    assert "'7abf' in the checkpoint, 'a7db' now (data.max_length was 64, is 80)" in text
    with pytest.raises(CheckpointError, match="a file of them has changed"):
        check_fits(saved, {**FACTS, "data": "a7db"})


def test_every_refused_difference_names_its_flag(saved):
    other = {**FACTS, "optimizer": "adamw_8bit", "seed": 7, "global_batch_size": 8}
    with pytest.raises(CheckpointError) as caught:
        check_fits(saved, other)
    for text in (
        "optimizer: 'adamw' in the checkpoint, 'adamw_8bit' now (--optim)",
        "seed: 42 in the checkpoint, 7 now (--seed)",
        "sequences per step: 4 in the checkpoint, 8 now (--per_device_train_batch_size",
    ):
        assert text in str(caught.value)


def test_what_may_differ_is_said(saved):
    settings = {**FACTS["settings"], "optim.learning_rate": 5e-4}
    other = {**FACTS, "settings": settings, "versions": {"torch": "2.14.0"}}
    assert describe_changes(check_fits(saved, other), other) == [
        "note: other settings than in the checkpoint: optim.learning_rate was 0.001, is 0.0005",
        "note: other versions than in the checkpoint: torch was '2.13.0', is '2.14.0'",
    ]


def test_settings_that_are_newer_than_the_checkpoint_are_said_only_if_they_do_something(saved):
    settings = {**FACTS["settings"], "trainer.ema": 0.0, "model.neftune_alpha": 5.0}
    now = {**FACTS, "settings": settings}
    defaults = {"trainer.ema": 0.0, "model.neftune_alpha": None, "optim.learning_rate": 7.0}
    assert describe_changes(check_fits(saved, now), now, defaults) == [
        "note: other settings than in the checkpoint: model.neftune_alpha was None, is 5.0"
    ]


def test_a_checkpoint_from_before_settings_were_kept_goes_on(tmp_path):
    folder = tmp_path / "step_00000004"
    folder.mkdir()
    kept = {key: value for key, value in FACTS.items() if key not in ("settings", "versions")}
    write_manifest(folder, {"step": 4, **kept})
    assert describe_changes(check_fits(folder, FACTS), FACTS) == []

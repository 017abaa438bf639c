"""Names: short flags, dotted paths, other programs' spellings."""

import re
from pathlib import Path

import pytest

from bigft.config.flags import FLAGS, to_flag, to_path
from bigft.config.hints import HINTS, find_nearest, suggest_file
from bigft.config.typed import fields_of
from bigft.run.settings import Run


def test_short_flags_and_paths_translate_both_ways():
    for flag, path in FLAGS.items():
        assert to_path(flag) == path
        assert to_flag(path) == f"--{flag}"
    assert to_path("optim.weight_decay") == "optim.weight_decay"
    assert to_flag("optim.weight_decay") == "--optim.weight_decay"


def test_short_flags_name_settings_that_exist():
    assert set(FLAGS.values()) - {path for path, _ in fields_of(Run)} == {"dry_run"}


@pytest.mark.parametrize("name", HINTS)
def test_hints_answer_with_settings_that_exist(name):
    known = {*FLAGS, "config", *(path for path, _ in fields_of(Run))}
    assert name not in known
    for flag in re.findall(r"--([a-z_.0-9]+)", HINTS[name]):
        assert flag in known or flag.startswith("ds.")


def test_nearest_name_uses_the_last_part_too():
    assert find_nearest("weight_decays", ["optim.weight_decay", "seed"]) == "optim.weight_decay"
    assert find_nearest("xyz", ["optim.weight_decay", "seed"]) is None


def test_a_file_is_near_by_its_name_and_not_by_its_ending():
    names = [".pre-commit-config.yaml", "zero1.json", "sft.yaml"]
    assert suggest_file(Path("x/sft.yml"), names) == "; did you mean x/sft.yaml?"
    assert suggest_file(Path("mine.json"), names) == ""
    assert suggest_file(Path("pre-commit-config.yaml"), names) == ""

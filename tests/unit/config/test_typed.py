"""Flags and recipes become typed values; mistakes are collected."""

import pytest

from bigft.config.typed import Typed, build_section, fields_of, read_flags, read_recipe
from bigft.run.settings import Run


def recipe(tmp_path, text):
    file = tmp_path / "r.yaml"
    file.write_text(text)
    problems = []
    return read_recipe(str(file), Run, problems), problems


def build(typed):
    problems = []
    return build_section(Run, typed, problems), problems


def test_short_and_dotted_flags_set_the_same_paths():
    typed = read_flags({"optim": "adamw_8bit", "optim.weight_decay": "0.1"}, Run, problems := [])
    assert not problems
    assert {path: entry.value for path, entry in typed.items()} == {
        "optim.name": "adamw_8bit",
        "optim.weight_decay": "0.1",
    }


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("lr", "bigft calls this --learning_rate"),
        ("max_lenght", "--max_length"),
        ("optim.weigth_decay", "--optim.weight_decay"),
        ("trainer", "names a section"),
        ("zzzzzz", "bigft explain"),
        ("keep_last", "--checkpoint.keep_last"),
    ],
)
def test_unknown_flags_are_answered(name, answer):
    read_flags({name: "1"}, Run, problems := [])
    assert answer in problems[0]


def test_lists_mappings_and_absence_can_be_typed():
    flags = {
        "monitor.sinks": "tensorboard, wandb",
        "optim.lr_scheduler_kwargs": '{"num_cycles": 2}',
        "optim.lr_scheduler_kwargs.power": "0.5",
        "eval_data": "none",
        "max_steps": "null",
    }
    run, problems = build(read_flags(flags, Run, []))
    assert not problems
    assert run.monitor.sinks == ["tensorboard", "wandb"]
    assert run.optim.lr_scheduler_kwargs == {"num_cycles": 2.0, "power": 0.5}
    assert run.data.eval is None
    assert run.trainer.max_steps is None


def test_text_stays_text():
    run, _ = build(read_flags({"model": "7e3", "model.revision": "1234e56"}, Run, []))
    assert (run.model.name, run.model.revision) == ("7e3", "1234e56")


def test_bad_values_are_reported_and_the_rest_is_kept():
    flags = {"optim": "adamw8bit", "learning_rate": "-1", "max_length": "many", "seed": "7"}
    run, problems = build(read_flags(flags, Run, []))
    assert run.trainer.seed == 7
    assert len(problems) == 3
    assert any("did you mean adamw_8bit?" in p and "--optim=adamw8bit" in p for p in problems)


def test_recipe_takes_flat_nested_and_dotted_keys(tmp_path):
    text = (
        "learning_rate: 1e-5\noptim: {weight_decay: 0.1}\ndata.max_length: 64\n"
        "trainer:\n  # nothing yet\nmodel: {name: builtin}\n"
    )
    typed, problems = recipe(tmp_path, text)
    run, more = build(typed)
    assert not problems + more
    assert (run.optim.learning_rate, run.optim.weight_decay, run.data.max_length) == (1e-5, 0.1, 64)
    assert typed["optim.weight_decay"].source.startswith("recipe ")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("seed: 1\nseed: 2", "seed stands twice, in lines 1 and 2"),
        ("learning_rate: 1\noptim: {learning_rate: 2}", "are one setting"),
        ("learnig_rate: 1", "did you mean learning_rate?"),
        ("ds: {bf16: {enabled: true}}", "JSON"),
        ("dry_run: true", "can only be a flag"),
        ("- 1", "setting: value"),
        ("a: [", "not YAML"),
    ],
)
def test_mistakes_in_a_recipe_are_answered(tmp_path, text, answer):
    _, problems = recipe(tmp_path, text)
    assert any(answer in problem for problem in problems)


def test_missing_recipe_names_its_neighbour(tmp_path):
    recipe(tmp_path, "seed: 1")
    read_recipe(str(tmp_path / "rr.yaml"), Run, problems := [])
    assert "did you mean" in problems[0]


def test_every_leaf_of_the_run_is_found():
    paths = [path for path, _ in fields_of(Run)]
    assert "optim.learning_rate" in paths
    assert "output_dir" in paths
    assert len(paths) == len(set(paths))


def test_typed_shows_value_and_source():
    assert str(Typed("3", "flag --seed")) == "--seed=3"
    assert str(Typed(3, "recipe r.yaml")) == "3 in recipe r.yaml"

"""The grammar of a search space, also of texts that mean harm."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigft.search.space import (
    Parameter,
    check_grid,
    check_no_grid,
    combine,
    read_space,
    write_value,
)


def read(text: str) -> Parameter:
    problems: list[str] = []
    (parameter,) = read_space(text, problems)
    assert problems == []
    return parameter


def refusal(text: str) -> str:
    problems: list[str] = []
    read_space(text, problems)
    assert len(problems) == 1, problems
    return problems[0]


def test_every_range_is_read():
    problems: list[str] = []
    space = read_space(
        "optim.learning_rate = log( 1e-6 , 1e-4 ); optim.weight_decay=uniform(0,.5);"
        "data.max_length=int(128,512,128);optim.name=choice(adamw, adamw_8bit)",
        problems,
    )
    assert problems == []
    assert [(p.path, p.kind, p.low, p.high) for p in space[:3]] == [
        ("optim.learning_rate", "log", 1e-6, 1e-4),
        ("optim.weight_decay", "uniform", 0.0, 0.5),
        ("data.max_length", "int", 128, 512),
    ]
    assert space[3].choices == ("adamw", "adamw_8bit")


def test_short_flags_name_the_same_settings():
    assert read("learning_rate=log(1e-6,1e-4)").path == "optim.learning_rate"
    assert read("--learning_rate=log(1e-6,1e-4)").path == "optim.learning_rate"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "required, not given"),
        (" ; ; ", "required, not given"),
        ("learning_rate", "write SETTING=RANGE"),
        ("learning_rate=1e-4", "write SETTING=RANGE"),
        ("learning_rate=log(1e-6,1e-4", "write SETTING=RANGE"),
        ("=log(1e-6,1e-4)", "write SETTING=RANGE"),
        ("seed=unifrom(1,2)", "did you mean uniform"),
        ("seed=__import__(os)", "no such range"),
        ("seed=log(1)", "write log(a,b)"),
        ("seed=log(1,2,3,4)", "write log(a,b)"),
        ("seed=log(0,1)", "begins above 0"),
        ("seed=log(2,1)", "below the second"),
        ("seed=uniform(1,1)", "below the second"),
        ("seed=uniform(nan,1)", "not a number"),
        ("seed=uniform(0,inf)", "not a number"),
        ("seed=uniform(0,1e999)", "too large"),
        ("seed=uniform(0,1e99999)", "not a number"),
        ("seed=uniform(0,1_000)", "not a number"),
        ("seed=uniform(0,\N{ARABIC-INDIC DIGIT ONE})", "not a number"),
        ("seed=uniform(0," + "9" * 5000 + ")", "not a number"),
        ("seed=int(1,2.5)", "not a whole number"),
        ("seed=int(0,1e300)", "not a whole number"),
        ("seed=int(1,5,0)", "step must be from 1 to 4"),
        ("seed=int(1,5,9)", "step must be from 1 to 4"),
        ("seed=log(1,2,1)", "a grid takes 2 to"),
        ("seed=log(1,2,1e9)", "a grid takes 2 to"),
        ("seed=choice(1)", "at least two"),
        ("seed=choice(1,,2)", "at least two"),
        ("seed=choice(1,2,1)", "1 is there twice"),
        ("seed=int(1,2);trainer.seed=int(1,2)", "trainer.seed is there twice"),
        ("missing.yaml", "no such file"),
    ],
)
def test_what_is_no_range_is_refused_with_its_text(text, words):
    assert words in refusal(text)


def test_all_problems_are_collected():
    problems: list[str] = []
    read_space("a=log(0,1);b=foo(1);c=int(1,2);d=", problems)
    assert len(problems) == 3


def test_hostile_text_is_cut_and_its_control_characters_are_spelt_out():
    message = refusal("seed=choice(\x1b[2J" + "x" * 10_000 + ")")
    assert "\x1b" not in message
    assert "\\x1b[2J" in message
    assert len(message) < 300


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text):
    problems: list[str] = []
    space = read_space(text, problems)
    assert problems or space


@given(st.text(alphabet="log(),.=;int1e-9+ \n", max_size=60))
def test_no_text_of_its_own_letters_breaks_the_reader(text):
    problems: list[str] = []
    for parameter in read_space(f"a={text}", problems):
        if parameter.kind != "choice":
            assert math.isfinite(parameter.low)
            assert parameter.low < parameter.high
        assert parameter.probes()


def test_a_file_holds_ranges_nested_or_not(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(
        "learning_rate: log(1e-6,1e-4)\noptim:\n  weight_decay: uniform(0,0.1)\n"
        "  name: [adamw, adamw_8bit]\n  fp32_embeddings: [true, false]\n"
    )
    problems: list[str] = []
    space = read_space(str(file), problems)
    assert problems == []
    assert [str(p) for p in space] == [
        "optim.learning_rate=log(1e-6,1e-4)",
        "optim.weight_decay=uniform(0,0.1)",
        "optim.name=choice(adamw,adamw_8bit)",
        "optim.fp32_embeddings=choice(true,false)",
    ]
    file.write_text("- 1\n")
    assert "must hold" in refusal(str(file))
    file.write_text("")
    assert "no `setting: range` line" in refusal(str(file))


def test_a_grid_is_every_combination():
    space = [read("optim.name=choice(a,b)"), read("seed=int(1,6,2)"), read("x=log(1,100,3)")]
    found = list(combine(space))
    assert len(found) == 2 * 3 * 3
    assert found[0] == {"optim.name": "a", "trainer.seed": 1, "x": 1.0}
    assert found[1]["x"] == pytest.approx(10)
    assert found[-1] == {"optim.name": "b", "trainer.seed": 5, "x": 100.0}


def test_a_grid_needs_counts_and_a_limit():
    (problem,) = check_grid([read("x=log(1,100)")])
    assert "log(1,100,5)" in problem
    (problem,) = check_grid([read("x=int(1,1000)"), read("y=int(1,1000)")])
    assert "1,000,000 combinations" in problem
    (problem,) = check_no_grid([read("x=log(1,100,5)")], "tpe")
    assert "--sampler grid" in problem


def test_a_range_finds_the_value_as_it_stands():
    assert read("x=log(1,100)").find(10, {}) == 10.0
    assert read("x=log(1,100)").find(0.5, {}) is None
    assert read("x=log(1,100)").find(None, {}) is None
    assert read("x=int(1,9,2)").find(3, {}) == 3
    assert read("x=int(1,9,2)").find(4, {}) is None
    assert read("x=uniform(0,1)").find(True, {}) is None
    choices = {"1e-1": 0.1, "2": 2.0}
    assert read("x=choice(1e-1,2)").find(0.1, choices) == "1e-1"
    assert read("x=choice(1e-1,2)").find(0.3, choices) is None


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_written_without_loss(number):
    assert float(write_value(number)) == number

"""What is measured, and from where on it is too much."""

import dataclasses
import math

import pytest
import torch

from bigft.selftest.agreement import TOLERANCES, Difference, find_disagreements, measure
from bigft.selftest.reference import Course
from bigft.selftest.rows import Row, list_rows

START = {"a": torch.zeros(4), "b": torch.ones(2)}
REFERENCE = Course(
    [4.0, 3.0], [1.0, 2.0], [0.1, 0.05], {"a": torch.full((4,), 0.1), "b": torch.full((2,), 0.9)}
)
ROW = Row("zero3", "adamw", 1, "fp32")


def compare(**changes):
    return measure(dataclasses.replace(REFERENCE, **changes), REFERENCE, START)


def test_the_same_course_does_not_differ():
    found = compare()
    assert (found.loss, found.norm, found.rate, found.weights) == (0, 0, 0, 0)
    assert find_disagreements(found, ROW) == []


def test_losses_are_compared_step_by_step():
    assert compare(losses=[4.0, 3.003]).loss == pytest.approx(1e-3)
    assert compare(norms=[1.0, 1.0]).norm == pytest.approx(0.5)


def test_weights_are_compared_by_how_far_they_were_moved():
    found = compare(weights={**REFERENCE.weights, "b": torch.full((2,), 0.91)})
    # Moved from 1 to 0.9: a hundredth off is a tenth of the way.
    assert found.weights == pytest.approx(0.1, rel=1e-4)
    assert found.worst == "b"


@pytest.mark.parametrize(
    "changes",
    [
        {"losses": [4.0]},
        {"losses": [4.0, math.nan]},
        {"norms": [math.nan, 2.0]},
        {"rates": [0.1, 0.1]},
        {"weights": {"a": REFERENCE.weights["a"]}},
        {"weights": {**REFERENCE.weights, "a": torch.full((4,), math.nan)}},
    ],
)
@pytest.mark.parametrize("row", [ROW, Row("zero3", "adamw_8bit", 2, "bf16")])
def test_what_is_missing_or_not_a_number_disagrees(changes, row):
    assert find_disagreements(compare(**changes), row)


@pytest.mark.parametrize("key", TOLERANCES, ids="-".join)
@pytest.mark.parametrize("what", ["loss", "norm", "weights"])
def test_a_tolerance_is_where_agreement_ends(key, what):
    precision, optim = key
    row = Row("zero1", optim, 1, precision)
    limit = getattr(TOLERANCES[key], what)
    fine = Difference(0.0, 0.0, 0.0, 0.0, "w")
    assert find_disagreements(dataclasses.replace(fine, **{what: limit}), row) == []
    problems = find_disagreements(dataclasses.replace(fine, **{what: limit * 1.001}), row)
    assert len(problems) == 1
    assert "more than" in problems[0]


def test_every_row_has_a_tolerance():
    assert {(row.precision, row.optim) for row in list_rows()} == set(TOLERANCES)

"""Metrics against their definitions, written out."""

import math

import numpy as np
import pytest

from bigft.tasks.metrics import judge_classes, judge_many, judge_numbers


def _count(predicted: np.ndarray, right: np.ndarray, label: int) -> tuple[int, int, int]:
    hit = int(((predicted == label) & (right == label)).sum())
    return hit, int((predicted == label).sum()), int((right == label).sum())


def _f1(hit: int, said: int, true: int) -> float:
    return 2 * hit / (said + true) if said + true else 0.0


def test_two_classes():
    generator = np.random.default_rng(0)
    right = generator.integers(0, 2, 200)
    predicted = np.where(generator.random(200) < 0.7, right, 1 - right)
    found = judge_classes(predicted, right, 2)
    tp = int(((predicted == 1) & (right == 1)).sum())
    tn = int(((predicted == 0) & (right == 0)).sum())
    fp, fn = (
        int(((predicted == 1) & (right == 0)).sum()),
        int(((predicted == 0) & (right == 1)).sum()),
    )
    assert found["accuracy"] == pytest.approx((tp + tn) / 200)
    assert found["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert found["matthews"] == pytest.approx((tp * tn - fp * fn) / root)


def test_several_classes():
    generator = np.random.default_rng(1)
    right, predicted = generator.integers(0, 4, 300), generator.integers(0, 4, 300)
    found = judge_classes(predicted, right, 5)
    each = [_f1(*_count(predicted, right, label)) for label in range(4)]
    assert found["f1_macro"] == pytest.approx(np.mean(each))
    assert "f1" not in found


def test_many_labels():
    generator = np.random.default_rng(2)
    right, predicted = (generator.integers(0, 2, (100, 3)) for _ in range(2))
    found = judge_many(predicted, right)
    columns = [_count(predicted[:, n], right[:, n], 1) for n in range(3)]
    assert found["accuracy"] == pytest.approx((predicted == right).all(1).mean())
    assert found["f1_micro"] == pytest.approx(_f1(*np.sum(columns, 0)))
    assert found["f1_macro"] == pytest.approx(np.mean([_f1(*column) for column in columns]))


def test_numbers():
    generator = np.random.default_rng(3)
    right = generator.normal(size=(50, 2))
    predicted = right + generator.normal(size=(50, 2))
    found = judge_numbers(predicted, right)
    assert found["mae"] == pytest.approx(np.abs(predicted - right).mean())
    errors, spread = ((predicted - right) ** 2).sum(0), ((right - right.mean(0)) ** 2).sum(0)
    assert found["r2"] == pytest.approx((1 - errors / spread).mean())
    pearson = [np.corrcoef(predicted[:, n], right[:, n])[0, 1] for n in range(2)]
    assert found["pearson"] == pytest.approx(np.mean(pearson))
    ranks = [
        np.corrcoef(predicted[:, n].argsort().argsort(), right[:, n].argsort().argsort())[0, 1]
        for n in range(2)
    ]
    assert found["spearman"] == pytest.approx(np.mean(ranks))


def test_what_cannot_be_judged():
    nothing = np.zeros((0, 1))
    assert judge_numbers(nothing, nothing) == {}
    assert judge_classes(nothing[:, 0], nothing[:, 0], 2) == {}
    same = np.ones((3, 1))
    found = judge_numbers(same, np.arange(3.0)[:, None])
    assert math.isnan(found["pearson"])
    assert math.isnan(found["spearman"])

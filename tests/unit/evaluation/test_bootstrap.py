"""Paired resampling, held against its definition."""

import random
from statistics import NormalDist

import numpy as np
import pytest
import sacrebleu
from making import WORDS

from bigft.evaluation.bootstrap import (
    RESAMPLES,
    SEED,
    Difference,
    compare,
    has_same_terms,
    show_differences,
)
from bigft.evaluation.text_metrics import join_bleu, judge_answers


def _means(values):
    return {number: [float(value), 1.0] for number, value in enumerate(values)}


def test_the_same_model_twice_differs_by_nothing():
    sums = _means(np.random.default_rng(0).normal(size=50))
    found = compare(sums, sums)
    assert (found.difference, found.low, found.high, found.share_b_larger) == (0, 0, 0, 0.5)


def test_what_is_hard_for_both_cancels_out():
    hard = np.random.default_rng(1).normal(scale=100, size=80)
    found = compare(_means(hard), _means(hard + 1))
    assert found.difference == pytest.approx(1)
    assert (found.low, found.high) == (pytest.approx(1), pytest.approx(1))
    assert found.share_b_larger == 1.0


def test_the_interval_is_that_of_the_normal_distribution_where_that_holds():
    generator = np.random.default_rng(2)
    a, b = generator.normal(size=2000), generator.normal(0.05, 1, size=2000)
    found = compare(_means(a), _means(b))
    error = (b - a).std() / np.sqrt(2000)
    half = NormalDist().inv_cdf(0.975) * error
    # The quantiles of 1,000 draws are themselves off by a few percent.
    assert found.low == pytest.approx(found.difference - half, abs=0.15 * half)
    assert found.high == pytest.approx(found.difference + half, abs=0.15 * half)
    assert found.share_b_larger == pytest.approx(
        NormalDist().cdf(found.difference / error), abs=0.03
    )


def test_losses_are_weighted_by_their_terms():
    a = {1: [10.0, 10.0], 2: [90.0, 30.0], 3: [5.0, 1.0]}
    b = {1: [20.0, 10.0], 2: [60.0, 30.0], 4: [1.0, 1.0]}
    found = compare(a, b)
    assert (found.a, found.b, found.examples) == (2.5, 2.0, 2)
    assert found == compare(a, b)
    assert compare(a, {9: [1.0, 1.0]}) is None
    assert has_same_terms(a, b)
    assert not has_same_terms(a, {1: [10.0, 11.0]})


def test_bleu_is_resampled_as_a_whole():
    chooser = random.Random(3)
    right = [" ".join(chooser.choices(WORDS[:6], k=12)) for _ in range(15)]
    models = [[" ".join(chooser.choices(WORDS[:6], k=12)) for _ in right] for _ in range(2)]
    a, b = (
        dict(enumerate(judge_answers(said, [[r] for r in right], ["bleu"]).bleu_counts))
        for said in models
    )
    found = compare(a, b, join_bleu)

    def bleu(said, chosen):
        texts = [said[n] for n in chosen]
        return sacrebleu.corpus_bleu(texts, [[right[n] for n in chosen]]).score

    generator = np.random.default_rng(SEED)
    draws = [generator.integers(15, size=15) for _ in range(RESAMPLES)]
    differences = [bleu(models[1], draw) - bleu(models[0], draw) for draw in draws]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(differences, (2.5, 97.5))))
    assert found.difference == pytest.approx(
        bleu(models[1], range(15)) - bleu(models[0], range(15))
    )


def test_the_table_for_people():
    one = Difference(2.5, 2.25, -0.25, -0.5, -0.125, 0.01, 1234)
    lines = show_differences({"loss": one}, {"chrf": (50.0, 51.5)}).splitlines()
    assert lines[0].split() == ["A", "B", "B", "-", "A", "95%", "interval", "examples"]
    assert lines[1].split() == [
        "loss",
        "2.5000",
        "2.2500",
        "-0.2500",
        "[-0.5000,",
        "-0.1250]",
        "1,234",
    ]
    assert lines[2].split() == ["chrf", "50.0000", "51.5000", "+1.5000"]

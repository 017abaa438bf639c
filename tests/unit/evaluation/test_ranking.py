"""Which way metrics go."""

import math

import pytest

from bigft.errors import ConfigError
from bigft.evaluation.ranking import (
    describe_direction,
    find_score,
    is_better,
    is_known,
    is_smaller_better,
)


@pytest.mark.parametrize(
    ("metric", "smaller"),
    [
        ("loss", True),
        ("eval_loss", True),
        ("loss/chat", True),
        ("perplexity", True),
        ("eval_mae", True),
        ("accuracy", False),
        ("eval_token_accuracy", False),
        ("f1_macro", False),
        ("r2", False),
        ("matthews", False),
    ],
)
def test_the_name_says_which_way_is_better(metric, smaller):
    assert is_smaller_better(metric) is smaller
    assert describe_direction(metric).endswith(f"{'smaller' if smaller else 'larger'} is better")


def test_equal_and_nan_are_no_improvement():
    assert is_better("loss", 1.0, None)
    assert is_better("loss", 0.9, 1.0)
    assert not is_better("loss", 1.0, 1.0)
    assert is_better("f1", 1.1, 1.0)
    assert not is_better("f1", 1.0, 1.0)
    assert not is_better("loss", math.nan, None)
    assert not is_better("loss", math.nan, 1.0)


def test_a_metric_is_found_by_both_names_and_a_wrong_one_is_answered():
    scores = {"loss": 1.0, "f1_macro": 0.5, "tokens": 30.0}
    assert find_score(scores, "eval_f1_macro", "--x") == find_score(scores, "f1_macro", "--x")
    with pytest.raises(ConfigError) as caught:
        find_score(scores, "f1_marco", "--trainer.early_stopping f1_marco:3")
    assert "--trainer.early_stopping f1_marco:3" in str(caught.value)
    assert "did you mean f1_macro?" in str(caught.value)
    assert str(caught.value).endswith("there are loss, f1_macro")
    with pytest.raises(ConfigError):
        find_score(scores, "tokens", "--x")


def test_every_metric_of_labels_and_numbers_is_known():
    """A sweep asks for the direction of those that are not."""
    import numpy as np

    from bigft.tasks.metrics import judge_classes, judge_many, judge_numbers

    one, two = np.array([0, 1, 1, 0]), np.array([[0, 1], [1, 1], [1, 0]])
    found = [judge_classes(one, one, 2), judge_classes(one, one, 3), judge_many(two, two)]
    numbers = np.array([[0.0], [1.0], [3.0]])
    found.append(judge_numbers(numbers, numbers))
    assert all(is_known(f"eval_{name}") for scores in found for name in scores)
    assert not is_known("eval_tokens")

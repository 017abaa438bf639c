"""Scores weighted by tokens."""

import math
from typing import Any

import pytest
import torch

from bigft.data.loading.collate import Batch, collate_padded
from bigft.evaluation.loop import describe_scores, evaluate, keep_rows, stay_alone, sum_rows
from bigft.tasks.task import Score, Totals
from bigft.tasks.tokens import judge_tokens

CPU = torch.device("cpu")


class Scripted:
    """A task whose scores are known."""

    unit = "tokens"

    def __init__(self, scores: list[Score]) -> None:
        self._scores = iter(scores)
        self.seen: list[Totals] = []

    def score(self, forward: Any, batch: Any) -> Score:
        return next(self._scores)

    def judge(self, totals: Totals) -> dict[str, float]:
        self.seen.append(totals)
        return judge_tokens(totals)


def _evaluate(
    scores: list[Score], sum_over_ranks: Any = stay_alone, sources: tuple[str, ...] = ()
) -> dict[str, float]:
    batch = collate_padded([[]], pad_id=0, max_length=8)
    return evaluate(
        Scripted(scores),
        None,
        [batch] * len(scores),
        device=CPU,
        sum_over_ranks=sum_over_ranks,
        gather=keep_rows,
        sources=sources,
    )


def test_batches_count_by_their_tokens():
    found = _evaluate([Score(10.0, 5, 10), Score(90.0, 0, 30), Score(0.0, 0, 0)])
    assert found == {
        "loss": 2.5,
        "perplexity": pytest.approx(math.exp(2.5)),
        "token_accuracy": 0.125,
        "tokens": 40,
    }


def test_ranks_are_added_before_the_mean_is_taken():
    other = torch.tensor([30.0, 10.0, 10.0], dtype=torch.float64)
    found = _evaluate(
        [Score(10.0, 5, 10)],
        lambda row: sum_rows(torch.stack([torch.tensor(row, dtype=torch.float64), other])),
    )
    assert (found["loss"], found["token_accuracy"], found["tokens"]) == (2.0, 0.75, 20.0)


def test_each_part_of_the_data_has_a_loss_of_its_own():
    scores = [
        Score(14.0, 0, 8, torch.tensor([[10.0, 4.0], [4.0, 4.0], [0.0, 0.0]])),
        Score(6.0, 0, 4, torch.tensor([[6.0, 4.0], [0.0, 0.0], [0.0, 0.0]])),
    ]
    found = _evaluate(scores, sources=("a", "b", "c"))
    assert found["loss"] == 20 / 12
    losses = {name: value for name, value in found.items() if name.startswith("loss/")}
    assert losses == {"loss/a": 2.0, "loss/b": 1.0}
    other = torch.tensor([6.0, 0.0, 6.0, 0.0, 0.0, 2.0, 4.0, 4.0, 2.0], dtype=torch.float64)
    found = _evaluate(
        scores,
        lambda row: sum_rows(torch.stack([torch.tensor(row, dtype=torch.float64), other])),
        ("a", "b", "c"),
    )
    assert [found[f"loss/{name}"] for name in "abc"] == [2.0, 0.75, 2.0]
    assert not [name for name in _evaluate(scores, sources=("a",)) if "/" in name]


def test_hopeless_models_have_a_perplexity_that_is_no_lie():
    assert _evaluate([Score(1e6, 0, 10)])["perplexity"] == math.inf
    assert math.isnan(_evaluate([Score(math.nan, 0, 10)])["perplexity"])
    assert _evaluate([])["loss"] == 0.0


def test_outcomes_of_all_ranks_reach_the_metrics():
    task = Scripted([Score(1.0, 1, 2, None, torch.tensor([[1, 0], [2, 2]])), Score(1.0, 0, 0)])
    # Each row ends with the number of its part of the data.
    other = torch.tensor([[5.0, 6.0, 0.0]], dtype=torch.float64)
    evaluate(
        task,
        None,
        [collate_padded([[]], pad_id=0, max_length=8)] * 2,
        device=CPU,
        sum_over_ranks=stay_alone,
        gather=lambda rows: torch.cat([rows.double(), other]),
    )
    assert task.seen[0].outcomes.tolist() == [[1.0, 0.0], [2.0, 2.0], [5.0, 6.0]]
    assert task.seen[0].outcomes.dtype == torch.float64


class Guessing(Scripted):
    """A task with one label per row, whose predictions are known."""

    unit = "labels"

    def judge(self, totals: Totals) -> dict[str, float]:
        right = totals.outcomes[:, 0] == totals.outcomes[:, 1]
        return {"accuracy": float(right.double().mean())} if len(right) else {}


def _make_labelled(labels: list[int], sources: list[int]) -> Batch:
    column = torch.tensor(labels)[:, None]
    return Batch(column, column, None, column, torch.tensor(sources)[:, None], 3)


def test_each_part_of_the_data_has_metrics_of_its_own():
    batches = [
        _make_labelled([1, 0, 2], [0, 2, 0]),
        _make_labelled([1, 1, -100], [2, 2, 0]),  # The last row is padding.
    ]
    scores = [
        Score(3.0, 2, 3, torch.ones(3, 2), torch.tensor([[1, 1], [1, 0], [2, 2]])),
        Score(2.0, 1, 2, torch.ones(3, 2), torch.tensor([[0, 1], [1, 1]])),
    ]
    other = torch.tensor([[4.0, 5.0, 0.0], [3.0, 3.0, 2.0]], dtype=torch.float64)
    found = evaluate(
        Guessing(scores),
        None,
        batches,
        device=CPU,
        sum_over_ranks=stay_alone,
        gather=lambda rows: torch.cat([rows, other]),
        sources=("a", "b", "c"),
    )
    assert found["accuracy"] == pytest.approx(4 / 7)
    parts = {name: value for name, value in found.items() if name.startswith("accuracy/")}
    assert parts == {"accuracy/a": pytest.approx(2 / 3), "accuracy/c": 0.5}


def test_scores_in_words():
    scores = {"loss": 0.5, "accuracy": 0.875, "f1_macro": 0.51234, "labels": 40.0, "loss/a": 1.0}
    scores["accuracy/a"] = 0.5
    assert describe_scores(scores, "labels") == "loss 0.5000, accuracy 87.5%, f1 macro 0.5123"

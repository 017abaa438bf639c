"""When a run that gets no better ends, and which of its checkpoints is the best."""

import json
import math
from typing import Any

import pytest

from bigft.errors import ConfigError
from bigft.trainer.best import Best, BestWatch, pick_best
from bigft.trainer.patience import Patience, parse_patience
from bigft.trainer.state import State
from bigft.trainer.stopping import EarlyStopping


def _score(state: State, step: int, **scores: float) -> None:
    state.step = state.scored_step = step
    state.scores = scores


def _play(values: list[float], patience: str, state: State | None = None) -> tuple[State, list]:
    """Evaluate every second step until the run is over."""
    said: list[str] = []
    hook = EarlyStopping(parse_patience(patience), said.append)
    state = state or State()
    hook.started(state, 1000)
    for value in values:
        if state.is_over:
            break
        state.step += 1
        hook.stepped(state, None)  # Between evaluations nothing happens.
        _score(state, state.step + 1, loss=value, f1=value)
        hook.stepped(state, None)
    return state, said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("loss:3", Patience("loss", 3)),
        ("eval_f1_macro:5", Patience("f1_macro", 5)),
        ("loss/a:b:12", Patience("loss/a:b", 12)),
    ],
)
def test_patience_is_read(text, expected):
    assert parse_patience(text) == expected


@pytest.mark.parametrize("text", ["loss", "loss:", "loss:0", ":3", "loss:x", "loss:1.5", "3"])
def test_what_is_no_patience_is_said(text):
    with pytest.raises(ValueError, match="METRIC:PATIENCE, such as loss:3"):
        parse_patience(text)


def test_it_ends_after_so_many_evaluations_without_improvement():
    state, said = _play([3.0, 2.0, 2.5, 2.1, 2.0, 1.0], "loss:3")
    assert (state.step, state.is_over) == (10, True)
    assert said == [
        "early stopping: after 3 evaluations without a better eval_loss, smaller is better",
        "early stopping at step 10: 3 evaluations without improvement; loss was best at step 4 (2)",
    ]


def test_larger_is_better_for_other_metrics():
    assert _play([0.1, 0.2, 0.15, 0.1], "eval_f1:2")[0].step == 8
    assert not _play([0.1, 0.2, 0.15, 0.3, 0.2], "f1:2")[0].is_over


def test_not_a_number_is_no_improvement():
    state, said = _play([math.nan] * 5, "f1:2")
    assert state.step == 4
    assert "has never been a number" in said[-1]


@pytest.mark.parametrize("cut", range(6))
def test_a_resumed_run_decides_as_a_whole_one(cut):
    values = [3.0, 2.0, 2.5, 2.1, 2.0, 2.0]
    whole, _ = _play(values, "loss:3")
    before, _ = _play(values[:cut], "loss:3")
    resumed = State.from_dict(json.loads(json.dumps(before.to_dict())))
    assert resumed == before
    resumed.is_over = False
    after, _ = _play(values[cut:], "loss:3", resumed)
    assert after == whole


def test_another_patience_counts_from_the_start_of_a_resumed_run():
    before, _ = _play([2.0, 2.5, 2.1], "loss:9")
    assert not before.is_over
    assert _play([1.0], "loss:2", before)[0].step == 6
    before.is_over = False
    state, said = _play([0.9, 0.8, 0.7], "f1:2", before)
    assert "note: until now loss decided; the count starts anew" in said
    assert state.is_over


def test_a_metric_that_is_not_there_ends_the_run_at_the_first_evaluation():
    hook = EarlyStopping(parse_patience("accuracy:2"), lambda _: None)
    state = State()
    hook.started(state, 10)
    _score(state, 1, loss=1.0, perplexity=2.0)
    with pytest.raises(ConfigError, match="accuracy; there are loss, perplexity"):
        hook.stepped(state, None)


def test_a_checkpoint_is_best_only_by_its_own_evaluation():
    state = State()
    _score(state, 4, loss=2.0)
    first = pick_best("eval_loss", None, state)
    assert first == Best("loss", 2.0, 4)
    state.step = 5  # Saved because of a signal.
    state.scores["loss"] = 1.0
    assert pick_best("loss", first, state) is first
    _score(state, 8, loss=2.0)
    assert pick_best("loss", first, state) is first
    _score(state, 12, loss=1.5)
    assert pick_best("loss", first, state) == Best("loss", 1.5, 12)
    assert pick_best("f1", first, state) is first


def test_the_watch_looks_at_every_evaluation_and_at_one_after_a_resume():
    class Keeper:
        heard: list[Any] = []

        def consider_resumed(self, state: State) -> None:
            self.heard.append(state.step)

    watch = BestWatch("eval_loss", "--checkpoint.best eval_loss", Keeper(), lambda _: None)
    state = State()
    watch.started(state, 10)
    assert Keeper.heard == []
    _score(state, 4, loss=2.0)
    watch.started(state, 10)
    assert Keeper.heard == [4]
    _score(state, 5, f1=2.0)
    with pytest.raises(ConfigError, match="--checkpoint.best eval_loss: .* there are f1"):
        watch.stepped(state, None)


def test_a_resumed_run_may_be_judged_by_what_the_one_before_was_not_asked_for():
    class Keeper:
        def consider_resumed(self, state: State) -> None:
            raise AssertionError("there is nothing to judge by")

    state = State()
    _score(state, 4, loss=2.0)
    stopping = EarlyStopping(parse_patience("bleu:2"), lambda _: None)
    watch = BestWatch("bleu", "--checkpoint.best bleu", Keeper(), lambda _: None)
    for hook in (stopping, watch):
        hook.started(state, 10)
    assert not state.is_over
    _score(state, 5, loss=2.0, bleu=30.0)
    for hook in (stopping, watch):
        hook.stepped(state, None)
    assert state.progress.best == 30.0

"""The loop itself, with plain torch in the engine's place."""

import json
import math
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from making import VOCAB, llama_config
from stores import make_chunk, write_store
from torch import nn

from bigft.data.loading.collate import collate_padded
from bigft.data.loading.loader import Share, StoreLoader
from bigft.data.order.cursor import Cursor
from bigft.data.order.pack import pack_none
from bigft.data.order.plan import FixedPlan
from bigft.data.store.rows import Rows
from bigft.data.tokens.tokenize import Row
from bigft.distributed.signals import StopSignals
from bigft.engine.engine import StepResult
from bigft.errors import StoppedError, TrainingError
from bigft.monitor.events import Events
from bigft.tasks.causal_lm import CausalLM
from bigft.tasks.task import LossSum
from bigft.trainer.health import Health
from bigft.trainer.loop import fit
from bigft.trainer.rendezvous import Rendezvous
from bigft.trainer.state import State

CPU = torch.device("cpu")


class PlainEngine:
    """The engine's face over plain torch: SGD, and a step that is skipped when asked."""

    def __init__(self, module: nn.Module, broken_steps: set[int] | None = None) -> None:
        self.module = module
        self._optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        self._broken = broken_steps or set()
        self.steps = 0
        self.noise: list[float] = []

    def __call__(self, **inputs: Any) -> Any:
        self.noise.append(torch.rand(()).item())
        return self.module(**inputs)

    def set_training(self, training: bool) -> None:
        self.module.train(training)

    def backward(self, loss_sum: torch.Tensor, global_tokens: int) -> None:
        (loss_sum / max(global_tokens, 1)).backward()

    def step(self) -> StepResult:
        self.steps += 1
        skipped = self.steps in self._broken
        if not skipped:
            self._optimizer.step()
        self._optimizer.zero_grad()
        return StepResult(0.1, None if skipped else 1.0, skipped)


class Watcher:
    """Writes down what it was told."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.losses: list[float] = []
        self.by_source: list[Any] = []

    def started(self, state: State, total_steps: int) -> None:
        self.heard.append(("started", state.step, total_steps))

    def stepped(self, state: State, report: Any) -> None:
        self.heard.append(state.step)
        self.losses.append(float(report.loss_sum) / report.supervised_tokens)
        self.by_source.append(report.by_source)

    def finished(self, state: State) -> None:
        self.heard.append("finished")


def _engine(broken: set[int] | None = None) -> PlainEngine:
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return PlainEngine(LlamaForCausalLM(llama_config(num_hidden_layers=1)), broken)


def _place(name: str, rows: list[Row]) -> list[str]:
    return [f"{name}.jsonl:{number}" for number in range(1, len(rows) + 1)]


@pytest.fixture
def loader(tmp_path) -> Any:
    chooser = np.random.default_rng(0)
    rows = []
    for length in (6, 9, 5, 8, 7):
        supervised = np.ones(length, dtype=bool)
        supervised[0] = False
        rows.append(Row(chooser.integers(1, VOCAB, length, dtype=np.int32), supervised))
    stores = [
        write_store(tmp_path / name, make_chunk(part, origins=_place(name, part)))
        for name, part in (("one", rows[:2]), ("two", rows[2:]))
    ]
    all_rows = Rows(stores)

    def build(
        micro_batch_size: int = 1, accumulation: int = 2, num_sources: int = 1
    ) -> StoreLoader:
        return StoreLoader(
            all_rows,
            FixedPlan(pack_none(all_rows.lengths)),
            Share(micro_batch_size, accumulation),
            seed=1,
            collate=partial(collate_padded, pad_id=0, max_length=16, num_sources=num_sources),
        )

    return build


def _fit(engine: Any, loader: Any, state: State, hooks: list[Any], **changes: Any) -> State:
    rendezvous = changes.pop("rendezvous", None) or Rendezvous(StopSignals(), CPU)
    options = {"total_steps": 6, "seed": 3, "device": CPU, "rendezvous": rendezvous, **changes}
    return fit(engine, CausalLM(), loader, state, hooks, **options)


def test_hooks_hear_every_step_once(loader):
    watcher = Watcher()
    state = _fit(_engine(), loader(), State(), [watcher])
    assert watcher.heard == [("started", 0, 6), 1, 2, 3, 4, 5, 6, "finished"]
    assert (state.step, state.epoch, state.tokens, state.skipped_steps) == (6, 2.0, 70, 0)
    assert state.cursor == Cursor(2)
    assert watcher.losses[3] < watcher.losses[0]


def test_accumulation_changes_nothing(loader):
    one, other = Watcher(), Watcher()
    _fit(_engine(), loader(2, 1), State(), [one])
    _fit(_engine(), loader(1, 2), State(), [other])
    np.testing.assert_allclose(one.losses, other.losses, rtol=2e-6)


def test_the_losses_of_the_parts_add_up_to_the_loss(loader):
    """Over all micro-batches of a step, and counting its tokens."""
    watcher = Watcher()
    _fit(_engine(), loader(2, 2, num_sources=2), State(), [watcher], total_steps=2)
    for found, loss in zip(watcher.by_source, watcher.losses, strict=True):
        total, count = found.sum(0).tolist()
        assert loss == pytest.approx(total / count)
    one, two = (found[:, 1] for found in watcher.by_source)
    # An epoch of 5 rows in steps of 4: each token but the first of a row.
    assert (one + two).tolist() == [5 + 8, 4 + 7 + 6]
    alone = Watcher()
    _fit(_engine(), loader(2, 2), State(), [alone], total_steps=2)
    assert alone.by_source == [None, None]
    np.testing.assert_allclose(alone.losses, watcher.losses, rtol=1e-6)


def test_a_resumed_run_sees_the_same_data_and_dropout(loader):
    whole, engine = Watcher(), _engine()
    _fit(engine, loader(), State(), [whole])
    half = _engine()
    middle = _fit(half, loader(), State(), [], total_steps=4)
    seen = len(half.noise)
    rest = Watcher()
    torch.rand(17)  # whatever happens between
    _fit(half, loader(), State.from_dict(middle.to_dict()), [rest])
    assert rest.heard == [("started", 4, 6), 5, 6, "finished"]
    assert rest.losses == whole.losses[4:]
    assert half.noise[seen:] == engine.noise[seen:]
    assert len(set(engine.noise)) == len(engine.noise), "each step draws from its own stream"


def test_a_finished_run_takes_no_step(loader):
    watcher, engine = Watcher(), _engine()
    _fit(engine, loader(), State(step=6), [watcher])
    assert watcher.heard == [("started", 6, 6), "finished"]
    assert engine.steps == 0


def test_a_hook_ends_the_run_when_it_is_over(loader):
    class Ender(Watcher):
        def stepped(self, state: State, report: Any) -> None:
            super().stepped(state, report)
            state.is_over = state.step == 2

    watcher, after = Ender(), Watcher()
    state = _fit(_engine(), loader(), State(), [watcher, after])
    assert after.heard == [("started", 0, 6), 1, 2, "finished"]
    # The next run asks its own hooks.
    _fit(_engine(), loader(), state, [watcher])
    assert state.step == 6


def _health(tmp_path: Path, said: list[str], **changes: Any) -> Health:
    options = {"max_skipped_in_a_row": 3, "expects_overflow": False, **changes}
    return Health(said.append, Events(tmp_path / "events.jsonl"), **options)


def _read_events(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]


def test_skipped_steps_in_a_row_end_the_run_and_name_their_samples(loader, tmp_path):
    watcher, state, said = Watcher(), State(), []
    hooks = [watcher, _health(tmp_path, said)]
    with pytest.raises(TrainingError, match="step 5: a gradient was not finite, 3 times") as caught:
        _fit(_engine({3, 4, 5}), loader(), state, hooks)
    assert caught.value.exit_code == 7
    assert (state.step, state.skipped_steps, state.skipped_in_a_row) == (5, 3, 3)
    assert watcher.heard[-1] == 5, "the row of the last step is written before the error"
    events = _read_events(tmp_path)
    assert [event["step"] for event in events] == [3, 4, 5]
    # Two sequences of one row make a step; the last one of an epoch is alone.
    rows = {name for event in events for name in event["samples"]}
    assert rows <= {"one.jsonl:1", "one.jsonl:2", "two.jsonl:1", "two.jsonl:2", "two.jsonl:3"}
    assert [len(event["samples"]) for event in events] == [1, 2, 2]
    for event, line in zip(events, said, strict=True):
        assert f"step {event['step']} skipped" in line
        assert all(name in line for name in event["samples"])


def test_an_interrupted_run_still_knows_how_many_were_skipped(loader, tmp_path):
    state = _fit(_engine({3, 4}), loader(), State(), [_health(tmp_path, [])], total_steps=4)
    resumed = State.from_dict(json.loads(json.dumps(state.to_dict())))
    with pytest.raises(TrainingError, match="step 5: .* 3 times"):
        _fit(_engine({1}), loader(), resumed, [_health(tmp_path, [])])


def test_the_samples_of_a_loss_that_is_no_number_are_those_of_its_micro_batch(loader, tmp_path):
    class Nan(CausalLM):
        calls = 0

        def loss(self, forward: Any, batch: Any) -> LossSum:
            self.calls += 1
            found = super().loss(forward, batch)
            # The second micro-batch of the second step.
            return replace(found, total=found.total * (math.inf if self.calls == 4 else 1.0))

    expected = next(islice(loader().steps_from(Cursor()), 1, 2)).samples.list_of(0, 1)
    said: list[str] = []
    rendezvous = Rendezvous(StopSignals(), CPU)
    fit(
        _engine({2}), Nan(), loader(), State(), [_health(tmp_path, said)],
        total_steps=3, seed=0, device=CPU, rendezvous=rendezvous,
    )  # fmt: skip
    (event,) = _read_events(tmp_path)
    assert (event["step"], event["reason"]) == (2, "loss")
    assert event["micro_batches"] == [[0, 1]]
    assert event["samples"] == expected
    assert len(expected) == 1
    assert (
        f"the loss was not finite, so no weight changed on any rank; samples: {expected[0]}"
        in said[0]
    )


def test_under_fp16_an_overflow_is_no_alarm(loader, tmp_path):
    said: list[str] = []
    hooks = [_health(tmp_path, said, expects_overflow=True)]
    _fit(_engine({1, 2}), loader(), State(), hooks)
    assert said == [
        f"step {step}: fp16 overflow, skipped; the loss scale is lowered" for step in (1, 2)
    ]


def test_skipped_steps_with_good_ones_between_do_not(loader, tmp_path):
    hooks = [_health(tmp_path, [])]
    state = _fit(_engine({1, 2, 4, 5}), loader(), State(), hooks)
    assert (state.step, state.skipped_steps, state.skipped_in_a_row) == (6, 4, 0)


@pytest.mark.parametrize("at", [1, 4, 6])
def test_a_request_ends_the_run_after_the_step_in_which_it_came(loader, at):
    signals = StopSignals()

    class Asking(Watcher):
        def stepped(self, state: State, report: Any) -> None:
            super().stepped(state, report)
            # After this step was agreed on: the next one is the last.
            if state.step == at - 1:
                signals.request("SIGTERM")

    if at == 1:
        signals.request("SIGTERM")
    watcher, state = Asking(), State()
    with pytest.raises(StoppedError, match=f"stopped by SIGTERM at step {at} of 6, committed") as e:
        _fit(_engine(), loader(), state, [watcher], rendezvous=Rendezvous(signals, CPU))
    assert (e.value.exit_code, e.value.is_shared) == (75, True)
    assert state.step == at
    assert watcher.heard[-1] == at, "hooks, and with them the saver, hear of the last step"
    assert "finished" not in watcher.heard


def test_the_part_after_a_request_equals_an_uninterrupted_run(loader):
    whole, first, rest = Watcher(), Watcher(), Watcher()
    engine = _engine()
    _fit(engine, loader(), State(), [whole])
    signals, state, half = StopSignals(), State(), _engine()
    signals.request("SIGUSR1")
    with pytest.raises(StoppedError):
        _fit(half, loader(), state, [first], rendezvous=Rendezvous(signals, CPU))
    _fit(half, loader(), State.from_dict(state.to_dict()), [rest])
    assert [*first.losses, *rest.losses] == whole.losses
    for one, other in zip(engine.module.parameters(), half.module.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("seed", [0, 20_301_231, 2**32 - 1])
def test_any_seed_serves(loader, seed):
    state = State()
    _fit(_engine(), loader(), state, [], seed=seed, total_steps=1)
    assert state.step == 1

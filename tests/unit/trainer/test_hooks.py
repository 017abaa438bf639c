"""When things happen, and what is written about them."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bigft.data.order.cursor import Cursor
from bigft.distributed.signals import StopSignals
from bigft.engine.engine import StepResult
from bigft.errors import CheckpointError
from bigft.monitor.events import Events
from bigft.monitor.meters import PhaseClock
from bigft.monitor.sinks import build_sinks
from bigft.trainer.clock import count_total_steps
from bigft.trainer.hooks import StepReport, is_due
from bigft.trainer.rendezvous import Rendezvous
from bigft.trainer.reporting import Rate, Reporter
from bigft.trainer.saving import Saver
from bigft.trainer.section import TrainerSection
from bigft.trainer.state import State

CPU = torch.device("cpu")


def _report(
    loss: float, supervised: int = 10, skipped: bool = False, by_source: Any = None
) -> StepReport:
    result = StepResult(1e-3, None if skipped else 0.5, skipped)
    sums = None if by_source is None else torch.tensor(by_source)
    return StepReport(torch.tensor(loss), supervised, 20, 0.5, result, PhaseClock(CPU), sums)


def _run(tmp_path: Path, reports: list[StepReport], **changes: Any) -> tuple[list[Any], str]:
    stream = changes.pop("stream", io.StringIO())
    with build_sinks([], tmp_path, project="", settings={}, is_rank_zero=True) as sinks:
        reporter = Reporter(
            sinks,
            logging_steps=changes.get("logging_steps", 1),
            device=CPU,
            local_size=1,
            rate=changes.get("rate", Rate(1e6, None)),
            stream=stream,
            sources=changes.get("sources", ()),
        )
        state = State()
        reporter.started(state, len(reports))
        for report in reports:
            state.step += 1
            reporter.stepped(state, report)
        reporter.finished(state)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    return rows, stream.getvalue()


@pytest.mark.parametrize(
    ("every", "due"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (0, [5]), (9, [5])]
)
def test_things_happen_every_so_often_and_at_the_end(every, due):
    assert [step for step in range(1, 6) if is_due(step, every, 5)] == due


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 30),
        ({"num_train_epochs": 2.5}, 75),
        ({"num_train_epochs": 0.01}, 1),
        ({"max_steps": 7}, 7),
        ({"max_steps": 7, "num_train_epochs": 3.0}, 7),
    ],
)
def test_steps_of_a_run(settings, steps):
    assert count_total_steps(TrainerSection(**settings), 30) == steps


def test_state_survives_a_manifest_of_another_version():
    state = State(3, 10, 1, 0.5, 2.0, Cursor(1, 20, 300), 1, True, {"loss": [0.1, 1 / 3]})
    written = json.loads(json.dumps({**state.to_dict(), "invented_later": 1}))
    assert State.from_dict(written) == state
    assert State.from_dict({"step": 2, "cursor": {"epoch": 1}}) == State(step=2, cursor=Cursor(1))


class _Disk:
    """A place for checkpoints that fails at some steps."""

    def __init__(self, tmp_path: Path, broken: set[int] | None = None) -> None:
        self.saved: list[int] = []
        self.said: list[str] = []
        self.signals = StopSignals()
        self.rendezvous = Rendezvous(self.signals, CPU)
        self._broken = broken or set()
        self._file = tmp_path / "events.jsonl"

    def save(self, state: State, is_last: bool) -> Path:
        if state.step in self._broken:
            raise CheckpointError("No space left on device")
        self.saved.append(state.step)
        return Path()

    def wait(self) -> Path | None:
        """Do nothing: every save is done when `save` returns."""
        return None

    def run(self, save_steps: int, total_steps: int) -> None:
        """Let a saver hear of all steps."""
        saver = Saver(
            self.save,
            self.wait,
            save_steps,
            self.rendezvous,
            self.said.append,
            Events(self._file),
        )
        saver.started(State(), total_steps)
        for step in range(1, total_steps + 1):
            self.rendezvous.poll()
            self.rendezvous.settle()
            saver.stepped(State(step=step), _report(1.0))
            if self.rendezvous.stop is not None:
                return
        saver.finished(State(step=total_steps))

    def failed_steps(self) -> list[int]:
        return [json.loads(line)["step"] for line in self._file.read_text().splitlines()]


class _SlowDisk(_Disk):
    """One that says only when it is asked again how a save went."""

    _running: State | None = None

    def save(self, state: State, is_last: bool) -> None:
        assert self._running is None
        self._running = state

    def wait(self) -> Path | None:
        state, self._running = self._running, None
        return super().save(state, is_last=False) if state is not None else None


def test_failed_saves_in_the_background_are_counted(tmp_path):
    disk = _SlowDisk(tmp_path, {4, 6, 8})
    with pytest.raises(CheckpointError, match="3 saves in a row have failed"):
        disk.run(2, 20)
    assert disk.saved == [2]
    assert disk.failed_steps() == [4, 6, 8]


def test_a_save_is_not_left_out_because_the_one_before_it_failed(tmp_path):
    disk = _SlowDisk(tmp_path, {1, 2, 4})
    disk.run(1, 5)
    assert disk.saved == [3, 5]
    assert [line.split(" is not saved")[0] for line in disk.said] == [
        f"warning: step {step}" for step in (1, 2, 4)
    ]


def test_a_stop_is_saved_also_when_the_save_before_it_failed(tmp_path):
    class Stopped(_SlowDisk):
        def save(self, state: State, is_last: bool) -> None:
            super().save(state, is_last)
            self.signals.request("SIGTERM")

    disk = Stopped(tmp_path, {1})
    disk.run(1, 20)
    assert disk.saved == [2]
    assert disk.failed_steps() == [1]


def test_saver_saves_when_due_and_at_the_end(tmp_path):
    disk = _Disk(tmp_path)
    disk.run(2, 5)
    assert disk.saved == [2, 4, 5]
    assert disk.said == []


def test_the_save_at_an_early_end_is_the_last_and_must_not_fail(tmp_path):
    disk = _Disk(tmp_path, {3})
    saver = Saver(disk.save, disk.wait, 0, disk.rendezvous, print, Events(tmp_path / "e.jsonl"))
    saver.started(State(), 20)
    saver.stepped(State(step=2), _report(1.0))
    assert disk.saved == []
    saver.stepped(State(step=2, is_over=True), _report(1.0))
    assert disk.saved == [2]
    with pytest.raises(CheckpointError, match="^No space left on device$"):
        saver.stepped(State(step=3, is_over=True), _report(1.0))


def test_training_goes_on_after_a_failed_save(tmp_path):
    # Never three in a row: each good one starts the count anew.
    disk = _Disk(tmp_path, {1, 2, 4, 5, 7})
    disk.run(1, 8)
    assert disk.saved == [3, 6, 8]
    assert disk.failed_steps() == [1, 2, 4, 5, 7]
    assert [line.split(" is not saved")[0] for line in disk.said] == [
        f"warning: step {step}" for step in (1, 2, 4, 5, 7)
    ]
    assert [line[-2] for line in disk.said] == ["1", "2", "1", "2", "1"]
    assert all("No space left on device" in line for line in disk.said)


def test_the_third_failed_save_in_a_row_ends_the_run(tmp_path):
    disk = _Disk(tmp_path, {4, 6, 8})
    with pytest.raises(CheckpointError, match="3 saves in a row have failed") as caught:
        disk.run(2, 20)
    assert caught.value.exit_code == 5
    assert "No space left on device" in str(caught.value)
    assert disk.saved == [2]
    assert disk.failed_steps() == [4, 6, 8]


def test_the_last_save_must_not_fail(tmp_path):
    disk = _Disk(tmp_path, {5})
    with pytest.raises(CheckpointError, match="^No space left on device$"):
        disk.run(2, 5)
    assert disk.saved == [2, 4]


def test_a_request_to_stop_is_a_reason_to_save(tmp_path):
    disk = _Disk(tmp_path)
    disk.signals.request("SIGTERM")
    disk.run(0, 20)
    assert disk.saved == [1]


def test_a_stop_that_cannot_be_saved_is_an_error_of_the_checkpoint(tmp_path):
    disk = _Disk(tmp_path, {1})
    disk.signals.request("SIGUSR1")
    with pytest.raises(CheckpointError, match="stopped by SIGUSR1 at step 1, and what came after"):
        disk.run(0, 20)


def test_a_row_is_the_token_mean_over_its_steps(tmp_path):
    reports = [_report(10.0, 10), _report(90.0, 30), _report(8.0, 4)]
    rows, _ = _run(tmp_path, reports, logging_steps=2, rate=Rate(1e6, 1e9))
    assert [row["step"] for row in rows] == [2, 3]
    assert [row["loss"] for row in rows] == [2.5, 2.0]
    assert [row["tokens_per_second"] for row in rows] == [40.0, 40.0]
    assert [row["step_seconds"] for row in rows] == [0.5, 0.5]
    assert rows[0]["mfu"] == pytest.approx(40 * 1e6 / 1e9)


def test_the_last_steps_of_an_early_end_are_a_row(tmp_path):
    with build_sinks([], tmp_path, project="", settings={}, is_rank_zero=True) as sinks:
        reporter = Reporter(
            sinks, logging_steps=2, device=CPU, local_size=1, rate=Rate(1.0, None), stream=None
        )
        state = State()
        reporter.started(state, 100)
        for loss in (10.0, 20.0, 30.0):
            state.step += 1
            reporter.stepped(state, _report(loss))
        reporter.finished(state)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(2, 1.5), (3, 3.0)]


def test_each_part_of_the_data_has_a_loss_over_the_steps_of_a_row(tmp_path):
    reports = [
        _report(14.0, 8, by_source=[[10.0, 4.0], [4.0, 4.0], [0.0, 0.0]]),
        _report(6.0, 4, by_source=[[6.0, 4.0], [0.0, 0.0], [0.0, 0.0]]),
        _report(3.0, 3, by_source=[[0.0, 0.0], [3.0, 3.0], [0.0, 0.0]]),
    ]
    rows, _ = _run(tmp_path, reports, logging_steps=2, sources=("a", "b", "c"))
    names = ("loss/a", "loss/b", "loss/c")
    assert [[row[name] for name in names] for row in rows] == [
        [2.0, 1.0, None],
        [None, 1.0, None],
    ]
    assert rows[0]["loss"] == 20 / 12


def test_one_part_has_no_loss_of_its_own(tmp_path):
    rows, _ = _run(tmp_path, [_report(10.0)], sources=("a",))
    assert not [name for name in rows[0] if name.startswith("loss/")]


def test_only_the_end_is_logged_when_logging_is_off(tmp_path):
    rows, _ = _run(tmp_path, [_report(10.0)] * 3, logging_steps=0)
    assert [row["step"] for row in rows] == [3]


def test_a_skipped_step_is_a_row_without_numbers(tmp_path):
    rows, text = _run(tmp_path, [_report(float("nan"), skipped=True)])
    assert rows[0]["loss"] is None
    assert rows[0]["grad_norm"] is None
    assert "loss none" in text


def test_without_a_terminal_there_are_lines_not_a_bar(tmp_path):
    _, text = _run(tmp_path, [_report(10.0)] * 3)
    lines = text.splitlines()
    # The first, and the last; ten seconds have not gone by between.
    assert lines[0].startswith("step 1/3: loss 1.0000, lr 1.00e-03, 40 tok/s, 1.0s left")
    assert lines[1].startswith("step 3/3")
    assert len(lines) == 2


def test_on_a_terminal_there_is_a_bar(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    _, text = _run(tmp_path, [_report(10.0)] * 3, stream=Terminal())
    assert "3/3" in text
    assert "loss 1.0000" in text

"""Rows of numbers in files."""

import json
import sys

import pytest

from bigft.errors import ConfigError
from bigft.monitor.events import Events
from bigft.monitor.sinks import JsonLines, TensorBoard, build_sinks

ROWS = [
    {"step": 1, "loss": 2.5, "mfu": None, "grad_norm": float("inf")},
    {"step": 2, "loss": float("nan"), "mfu": None, "grad_norm": 1.5},
    {"step": 2, "eval_loss": 3.25, "eval_perplexity": 25.8},
]


def _open(folder, names=(), *, is_rank_zero=True):
    return build_sinks(
        list(names), folder, project="p", settings={"a": 1}, is_rank_zero=is_rank_zero
    )


@pytest.mark.parametrize("torn", ['{"step": 2, "lo', "x" * 10_000, ""])
def test_a_line_that_was_cut_off_does_not_spoil_the_next(tmp_path, torn):
    file = tmp_path / "metrics.jsonl"
    for whole in ("", '{"step": 1}\n'):
        file.write_text(whole + torn)
        sink = JsonLines(file)
        sink.write({"step": 2})
        sink.close()
        assert file.read_text() == whole + '{"step": 2}\n'


def test_a_full_disk_is_said_once_and_ends_nothing(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    said = []
    with build_sinks(
        [], tmp_path, project="p", settings={}, is_rank_zero=True, tell=said.append
    ) as sinks:
        for row in ROWS:
            sinks.write(row)
        Events(tmp_path / "events.jsonl").write(1, "skipped", rows=["a:1"])
    assert said == [
        "warning: metrics.jsonl: numbers from step 1 on may be missing (No space left on device);"
        " training goes on"
    ]


def _write_and_fail(sinks):
    sinks.write(ROWS[0])
    raise ZeroDivisionError


def _refuse(name):
    raise AssertionError(f"{name} is no JSON")


def test_each_row_is_one_strict_json_object(tmp_path):
    sink = JsonLines(tmp_path / "metrics.jsonl")
    for row in ROWS:
        sink.write(row)
    # Readable while it grows.
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line, parse_constant=_refuse) for line in lines]
    assert found[0] == {"step": 1, "loss": 2.5, "mfu": None, "grad_norm": None}
    assert found[1]["loss"] is None
    assert list(found[2]) == ["step", "eval_loss", "eval_perplexity"]
    sink.close()
    JsonLines(tmp_path / "metrics.jsonl").write({"step": 3})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4, "a resume appends"


def test_tensorboard_reads_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoard(tmp_path / "tensorboard")
    for row in ROWS:
        sink.write(row)
    sink.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {
        "train/loss",
        "train/grad_norm",
        "eval/loss",
        "eval/perplexity",
    }
    assert [(e.step, e.value) for e in events.Scalars("eval/loss")] == [(2, 3.25)]
    assert [(e.step, e.value) for e in events.Scalars("train/loss")][0] == (1, 2.5)


def test_all_sinks_get_every_row_and_are_closed_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), _open(tmp_path, ["tensorboard"]) as sinks:
        _write_and_fail(sinks)
    with pytest.raises(ValueError, match="closed"):
        sinks.write(ROWS[0])
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_other_ranks_write_nothing(tmp_path):
    with _open(tmp_path, ["tensorboard"], is_rank_zero=False) as sinks:
        sinks.write(ROWS[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_missing_tracker_says_what_to_install(tmp_path, monkeypatch, name):
    # None: its import fails, installed or not.
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"pip install 'bigft\[{name}\]'"):
        _open(tmp_path, ["tensorboard", name])

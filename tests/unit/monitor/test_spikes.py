"""Values that stand out are found, and the noise of training is not."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigft.monitor.events import Events
from bigft.monitor.spikes import WINDOW, judge

STEPS = 10_000


def _losses(seed: int) -> Any:
    """A loss that falls as a power of the step; noise of 4 %, with tails fatter than normal."""
    chooser = np.random.default_rng(seed)
    steps = np.arange(1, STEPS + 1)
    return (2.2 + 6.0 * steps**-0.35) * (1.0 + 0.03 * chooser.standard_t(8, STEPS))


def _norms(seed: int) -> Any:
    """Gradient norms: log-normal around a level that comes and goes."""
    chooser = np.random.default_rng(seed)
    level = np.exp(0.3 * np.sin(np.arange(STEPS) / 700))
    return level * np.exp(0.15 * chooser.standard_normal(STEPS))


def _find(values: Any) -> list[int]:
    history: list[float] = []
    return [n for n, value in enumerate(values) if judge(history, float(value)) is not None]


@pytest.mark.parametrize("make", [_losses, _norms])
def test_clean_runs_raise_at_most_one_alarm_in_ten_thousand_steps(make):
    alarms = [len(_find(make(seed))) for seed in range(4)]
    assert sum(alarms) <= len(alarms)


@pytest.mark.parametrize("seed", range(3))
def test_every_injected_spike_of_the_loss_is_found_at_its_step(seed):
    chooser = np.random.default_rng(1000 + seed)
    values = _losses(seed)
    at = chooser.choice(np.arange(100, STEPS), 20, replace=False)
    values[at] *= np.exp(chooser.uniform(math.log(2), math.log(100), 20))
    found = set(_find(values))
    assert set(at.tolist()) <= found
    assert len(found) - 20 <= 1


def test_spikes_close_to_each_other_do_not_hide_each_other():
    values = _losses(0)[2000:3000]
    at = list(range(500, 600, 5))
    values[at] *= 2.0
    assert _find(values) == at


def test_a_level_that_rises_for_good_becomes_the_new_past():
    values = np.concatenate([_losses(0)[5000:5500], 3.0 * _losses(1)[5000:5500]])
    found = _find(values)
    assert found[0] == 500
    assert found[-1] < 500 + WINDOW // 2 + 1


def test_what_hardly_moves_raises_no_alarm_over_rounding():
    assert _find([1.0] * 100 + [1.0 + 1e-6] * 100) == []
    assert _find([1.0] * 100 + [1.01]) == [100]


def test_nothing_is_judged_before_64_values():
    assert _find([1.0, 1.1] * 31 + [1.0, 1000.0]) == []
    assert _find([1.0, 1.1] * 32 + [1000.0]) == [64]


def test_the_numbers_are_those_of_the_window():
    values = [float(n % 7) for n in range(300)]
    history: list[float] = []
    for value in values:
        assert judge(history, value) is None
    assert history == values[-128:]
    spike = judge(history, 50.0)
    assert spike is not None
    assert spike.value == 50.0
    assert spike.mean == pytest.approx(np.mean(values[-128:]))
    assert spike.sigma == pytest.approx(np.std(values[-128:]))
    assert len(history) == WINDOW
    # The next one is judged without it.
    again = judge(history, 50.0)
    assert again is not None
    assert again.mean == pytest.approx(np.mean(values[-127:]))


def test_a_resumed_run_judges_like_one_that_was_not_interrupted():
    values = _norms(3)[:600]
    values[[200, 300, 450]] *= 20
    whole: list[float] = []
    expected = [judge(whole, float(v)) for v in values]
    history: list[float] = []
    found = []
    for n, value in enumerate(values):
        if n % 97 == 0:
            history = json.loads(json.dumps(history))
        found.append(judge(history, float(value)))
    assert found == expected
    assert history == whole


def test_events_are_lines_of_json(tmp_path: Path):
    events = Events(tmp_path / "events.jsonl")
    events.write(3, "spike", of="loss", value=math.inf, samples=["a.jsonl:1"])
    events.write(4, "skipped", reason="loss", micro_batches=[(0, 1)])
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 3, "event": "spike", "of": "loss", "value": None, "samples": ["a.jsonl:1"]},
        {"step": 4, "event": "skipped", "reason": "loss", "micro_batches": [[0, 1]]},
    ]
    Events(None).write(5, "spike")

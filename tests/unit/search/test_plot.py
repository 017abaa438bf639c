"""The picture of a sweep: whole whatever the values and texts are."""

import dataclasses
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bigft.cli import parse
from bigft.search.plan import Plan, plan_sweep
from bigft.search.plot import render_plot
from bigft.search.record import Record
from bigft.search.space import Parameter

ROOT = Path(__file__).resolve().parents[3]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def plan() -> Plan:
    words = ["--config", str(ROOT / "ds_configs/zero3.json")]
    search = "learning_rate=log(1e-5,1e-2);seed=int(1,9)"
    found = plan_sweep(parse(["sweep", *words, "--search", search]), {})
    hostile = Parameter("data.format", "choice", "", choices=("auto", "<b>&\"'x"))
    return dataclasses.replace(found, space=[*found.space, hostile])


def _record(number: int, value: float | None, state: str = "complete", **settings: str) -> Record:
    known = {"optim.learning_rate": "1e-3", "trainer.seed": "3", "data.format": "<b>&\"'x"}
    return Record(number, state, value, {**known, **settings}, is_baseline=number == 1)


def test_nothing_to_draw_is_drawn(plan):
    assert ET.fromstring(render_plot(plan, []))
    assert ET.fromstring(render_plot(plan, [_record(1, None, "failed")]))


def test_every_trial_with_a_value_is_in_every_panel(plan):
    records = [
        _record(1, 7.0),
        _record(2, 6.5),
        _record(3, 8.0, "pruned"),
        _record(4, None, "failed"),
        # One that went wrong does not press the others into a line, and stays inside.
        _record(5, 1e30),
        # As the settings stand, they may be none of the values that are searched.
        _record(6, 6.6, **{"data.format": "none", "optim.learning_rate": "1e-7"}),
    ]
    text = render_plot(plan, records)
    page = ET.fromstring(text)
    circles = list(page.iter(f"{SVG}circle"))
    assert len(circles) == 5 * 4
    for circle in circles:
        assert 0 <= float(circle.get("cx")) <= 420
        assert 0 <= float(circle.get("cy")) <= 280
    places = {c.find(f"{SVG}title").text: float(c.get("cy")) for c in circles}
    assert (
        places["trial 2, complete: 6.5"] - places["trial 1, complete: 7, as the settings stand"]
        > 20
    )
    assert "<b>" not in text
    assert not re.search(r"nan|inf", text.replace("sans-serif", ""))


def test_equal_values_are_drawn(plan):
    assert ET.fromstring(render_plot(plan, [_record(1, 0.0), _record(2, 0.0)]))

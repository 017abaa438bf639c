"""Schedules against transformers' own, step by step."""

from typing import Any, get_args

import pytest
import torch

from bigft.errors import ConfigError
from bigft.optim.schedule import build_schedule, count_warmup_steps
from bigft.optim.section import OptimSection

STEPS = 20
NAMES = get_args(OptimSection.model_fields["lr_scheduler_type"].annotation)


def _course(schedule_of: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = schedule_of(optimizer)
    rates = []
    for _ in range(STEPS):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


def _section(name: str, **changes: Any) -> OptimSection:
    return OptimSection(lr_scheduler_type=name, learning_rate=1e-3, **changes)


@pytest.mark.parametrize("name", NAMES)
def test_each_name_follows_transformers(name):
    from transformers import get_scheduler

    extra = {
        "cosine_with_min_lr": {"min_lr_rate": 0.1},
        "warmup_stable_decay": {"num_decay_steps": 2},
    }.get(name)
    found = _course(lambda o: build_schedule(_section(name, warmup_steps=4), o, STEPS))
    wanted = _course(
        lambda o: get_scheduler(
            name, o, num_warmup_steps=4, num_training_steps=STEPS, scheduler_specific_kwargs=extra
        )
    )
    assert found == wanted
    assert max(found) == pytest.approx(1e-3)
    if name != "constant":
        assert found[:4] == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4])


def test_courses_differ_from_each_other():
    courses = set()
    for name in NAMES:
        # With one cycle, restarts are plain cosine.
        arguments = {"num_cycles": 2.0} if name == "cosine_with_restarts" else {}
        section = _section(name, warmup_steps=2, lr_scheduler_kwargs=arguments)
        courses.add(tuple(_course(lambda o, s=section: build_schedule(s, o, STEPS))))
    assert len(courses) == len(NAMES)


def test_arguments_reach_the_schedule():
    section = _section("cosine_with_restarts", lr_scheduler_kwargs={"num_cycles": 2.0})
    rates = _course(lambda o: build_schedule(section, o, STEPS))
    assert rates[10] == pytest.approx(1e-3), "the second cycle starts in the middle"
    section = _section("cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": 5e-4})
    assert min(_course(lambda o: build_schedule(section, o, STEPS))) >= 5e-4


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("linear", {"num_cycles": 2.0}), ("cosine", {"colour": 1.0}), ("polynomial", {"lr_end": 1.0})],
)
def test_argument_that_the_schedule_does_not_take_is_refused(name, arguments):
    section = _section(name, lr_scheduler_kwargs=arguments)
    with pytest.raises(ConfigError, match=f"lr_scheduler_type {name}") as caught:
        _course(lambda o: build_schedule(section, o, STEPS))
    assert next(iter(arguments)) in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "steps"), [(0, 0), (0.1, 20), (0.004, 1), (0.999, 200), (1, 1), (50, 50)]
)
def test_warmup_below_one_is_a_fraction(setting, steps):
    assert count_warmup_steps(setting, 200) == steps

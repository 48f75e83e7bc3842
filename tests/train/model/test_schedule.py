from __future__ import annotations

import math

import pytest

from train.model.schedule import Schedule


def test_rate_rises_linearly_then_follows_half_a_cosine() -> None:
    schedule = Schedule(peak=2.0, total_steps=110, warmup_steps=10)
    assert [schedule.at(step) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert schedule.at(10) == pytest.approx(2.0)
    assert schedule.at(60) == pytest.approx(1.0)
    assert schedule.at(109) == pytest.approx(1 + math.cos(math.pi * 99 / 100))


def test_warm_up_takes_a_tenth_of_a_short_run_at_most() -> None:
    assert Schedule.for_run(1.0, total_steps=50, steps_per_epoch=100, warmup_epochs=1).warmup_steps == 5
    assert Schedule.for_run(1.0, total_steps=5000, steps_per_epoch=100, warmup_epochs=1).warmup_steps == 100


@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_no_step_has_a_rate_of_zero(total: int) -> None:
    schedule = Schedule.for_run(1.0, total_steps=total, steps_per_epoch=10, warmup_epochs=1)
    assert min(schedule.at(step) for step in range(total)) > 0

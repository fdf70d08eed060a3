from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from coterie.schedulers import ExponentialSchedule, KLAdaptiveLR, LinearSchedule


def optimizer(*rates: float) -> torch.optim.Adam:
    return torch.optim.Adam([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates or (1e-3,)])


@pytest.mark.parametrize(
    ("kl", "rate"),
    [
        # threshold 0.008: above 0.016 the rate falls by 1.5, below 0.004 it rises by 1.5
        (0.017, 1e-3 / 1.5),
        (0.016, 1e-3),
        (0.008, 1e-3),
        (0.004, 1e-3),
        (0.003, 1e-3 * 1.5),
        (0.0, 1e-3 * 1.5),
        (None, 1e-3),
        (torch.tensor(0.5), 1e-3 / 1.5),
        (float("nan"), 1e-3),
    ],
)
def test_steps_by_hand(kl: Any, rate: float) -> None:
    adam = optimizer()
    scheduler = KLAdaptiveLR(adam)
    scheduler.step(kl)
    assert adam.param_groups[0]["lr"] == pytest.approx(rate)
    assert scheduler.get_last_lr() == [pytest.approx(rate)]


def test_bounds() -> None:
    adam = optimizer()
    scheduler = KLAdaptiveLR(adam, min_lr=4e-4, max_lr=2e-3)
    # 1e-3, 1.5e-3, then 2.25e-3 is too much
    for expected in (1.5e-3, 2e-3, 2e-3):
        scheduler.step(0.0)
        assert scheduler.get_last_lr() == [pytest.approx(expected)]
    for expected in (2e-3 / 1.5, 2e-3 / 2.25, 2e-3 / 1.5**3, 4e-4, 4e-4):
        scheduler.step(1.0)
        assert scheduler.get_last_lr() == [pytest.approx(expected)]


def test_factors_and_threshold() -> None:
    adam = optimizer()
    scheduler = KLAdaptiveLR(adam, kl_threshold=0.1, kl_factor=3.0, lr_factor=2.0)
    scheduler.step(0.29)
    scheduler.step(0.04)
    assert scheduler.get_last_lr() == [1e-3]
    scheduler.step(0.31)
    assert scheduler.get_last_lr() == [pytest.approx(5e-4)]
    scheduler.step(0.03)
    assert scheduler.get_last_lr() == [pytest.approx(1e-3)]


def test_every_parameter_group_is_adapted() -> None:
    adam = optimizer(1e-3, 1e-4)
    KLAdaptiveLR(adam).step(1.0)
    assert [g["lr"] for g in adam.param_groups] == [pytest.approx(1e-3 / 1.5), pytest.approx(1e-4 / 1.5)]


def test_state_round_trip() -> None:
    settings = {"kl_threshold": 0.1, "min_lr": 1e-5, "max_lr": 1.0, "kl_factor": 4.0, "lr_factor": 10.0}
    state = KLAdaptiveLR(optimizer(), **settings).state_dict()
    assert state == settings
    other = KLAdaptiveLR(optimizer())
    other.load_state_dict(state)
    other.step(0.41)  # above 0.1 * 4
    assert other.get_last_lr() == [pytest.approx(1e-4)]
    other.step(0.39)
    assert other.get_last_lr() == [pytest.approx(1e-4)]
    other.step(0.02)  # below 0.1 / 4
    assert other.get_last_lr() == [pytest.approx(1e-3)]


@pytest.mark.parametrize(
    "settings",
    [
        {"kl_threshold": 0.0},
        {"kl_threshold": -1.0},
        {"min_lr": 0.0},
        {"min_lr": 1e-2, "max_lr": 1e-3},
        {"kl_factor": 0.5},
        {"lr_factor": 1.0},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected kl_threshold > 0"):
        KLAdaptiveLR(optimizer(), **settings)


def test_anything_but_an_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a torch Optimizer, got list"):
        KLAdaptiveLR([])  # type: ignore[arg-type]


# ---- numbers that follow the time step ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "timestep", "value"),
    [
        (1.0, 0, 4.0),
        (1.0, 50, 3.0),  # 4 + (2 - 4) * 50 / 100
        (1.0, 75, 2.5),
        (1.0, 100, 2.0),
        (0.5, 25, 3.0),  # half of the first 50
        (0.5, 50, 2.0),
        (0.5, 99, 2.0),
        (0.5, 500, 2.0),  # beyond the end
    ],
)
def test_linear_schedule_by_hand(fraction: float, timestep: int, value: float) -> None:
    assert LinearSchedule(4.0, 2.0, fraction)(timestep, 100) == pytest.approx(value)
    assert LinearSchedule(2.0, 4.0, fraction)(timestep, 100) == pytest.approx(6.0 - value)


@pytest.mark.parametrize(
    ("fraction", "timestep", "value"),
    [(1.0, 0, 8.0), (1.0, 50, 4.0), (1.0, 100, 2.0), (0.5, 25, 4.0), (0.5, 50, 2.0), (0.5, 99, 2.0), (0.25, 12.5, 4.0)],
)
def test_exponential_schedule_by_hand(fraction: float, timestep: int, value: float) -> None:
    # from 8 to 2: half-way 8 * (1/4)^(1/2) = 4
    assert ExponentialSchedule(8.0, 2.0, fraction)(timestep, 100) == pytest.approx(value)


@pytest.mark.parametrize("kind", [LinearSchedule, ExponentialSchedule])
def test_schedules_end_exactly_and_depend_on_the_time_step_alone(kind: type[LinearSchedule]) -> None:
    schedule = kind(0.7, 1e-5)
    assert (schedule(0, 1000), schedule(1000, 1000)) == (0.7, 1e-5)
    forwards = [schedule(t, 1000) for t in range(0, 1001, 50)]
    assert forwards == [schedule(t, 1000) for t in reversed(range(0, 1001, 50))][::-1]
    assert forwards == sorted(forwards, reverse=True)
    assert schedule == kind(0.7, 1e-5) != kind(0.7, 1e-5, 0.5)
    assert repr(schedule) == f"{kind.__name__}(start=0.7, end=1e-05, fraction=1.0)"


def test_a_linear_schedule_may_end_at_zero() -> None:
    assert LinearSchedule(1.0, 0.0)(1, 1) == 0.0
    assert LinearSchedule(0.0, -1.0)(1, 2) == -0.5


@pytest.mark.parametrize("kind", [LinearSchedule, ExponentialSchedule])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 0.5, 0.0), "fraction: expected a number in"),
        ((1.0, 0.5, 1.5), "fraction: expected a number in"),
        ((1.0, 0.5, float("nan")), "fraction: expected a number in"),
        ((float("nan"), 0.5), "start: expected a finite number, got nan"),
        ((1.0, float("inf")), "end: expected a finite number, got inf"),
    ],
)
def test_bad_schedules_are_refused(kind: type[LinearSchedule], arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(*arguments)


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (0.0, 1.0), (-1.0, 1.0)])
def test_an_exponential_schedule_is_positive(start: float, end: float) -> None:
    with pytest.raises(ValueError, match="expected a positive start and end"):
        ExponentialSchedule(start, end)


def test_a_schedule_needs_the_number_of_time_steps() -> None:
    for kind in (LinearSchedule, ExponentialSchedule):
        with pytest.raises(ValueError, match="timesteps: expected their total number, at least 1, got 0"):
            kind(1.0, 0.5)(0, 0)

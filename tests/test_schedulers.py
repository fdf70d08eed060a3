from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from coterie.schedulers import KLAdaptiveLR


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

from __future__ import annotations

import math

import pytest
import torch

from coterie.functional import clipped_surrogate_loss, clipped_value_loss, kl_estimate


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [
        (1.0, 2.0, -2.0),
        (1.1, 2.0, -2.2),  # within the range: -1.1 * 2
        (1.5, 2.0, -2.4),  # clipped: -1.2 * 2
        (0.5, 2.0, -1.0),  # too low, but the minimum is the unclipped: -0.5 * 2
        (1.5, -2.0, 3.0),  # too high and bad: the minimum is the unclipped, -(1.5 * -2)
        (0.5, -2.0, 1.6),  # clipped: -(0.8 * -2)
    ],
)
def test_surrogate_by_hand(ratio: float, advantage: float, loss: float) -> None:
    log_ratio = torch.tensor([[[math.log(ratio)]]])
    result = clipped_surrogate_loss(log_ratio, torch.tensor([[[advantage]]]), 0.2)
    torch.testing.assert_close(result, torch.tensor([[[loss]]]))


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [(1.5, 2.0, False), (0.5, 2.0, True), (1.5, -2.0, True), (0.5, -2.0, False), (1.1, 2.0, True)],
)
def test_surrogate_has_a_gradient_only_where_it_may_move(ratio: float, advantage: float, moves: bool) -> None:
    log_ratio = torch.tensor([math.log(ratio)], requires_grad=True)
    clipped_surrogate_loss(log_ratio, torch.tensor([advantage]), 0.2).sum().backward()
    assert log_ratio.grad is not None
    # d/dx -exp(x) A = -w A
    torch.testing.assert_close(log_ratio.grad, torch.tensor([-ratio * advantage if moves else 0.0]))


def test_surrogate_takes_a_clip_per_agent() -> None:
    log_ratio = torch.full((1, 2, 1), math.log(1.5))
    loss = clipped_surrogate_loss(log_ratio, torch.ones(1, 2, 1), torch.tensor([[0.1], [0.3]]))
    torch.testing.assert_close(loss.flatten(), torch.tensor([-1.1, -1.3]))


@pytest.mark.parametrize(
    ("value", "old", "target", "loss"),
    [
        (1.1, 1.0, 2.0, 0.81),  # within 0.2: (2 - 1.1)^2
        (1.5, 1.0, 2.0, 0.64),  # max(0.5^2, (2 - 1.2)^2): nearer than the clipped one
        (0.5, 1.0, 2.0, 2.25),  # max(1.5^2, (2 - 0.8)^2 = 1.44): farther than the clipped one
        (1.5, 1.0, 1.0, 0.25),  # max(0.5^2, 0.2^2)
    ],
)
def test_value_loss_by_hand(value: float, old: float, target: float, loss: float) -> None:
    result = clipped_value_loss(torch.tensor([value]), torch.tensor([old]), torch.tensor([target]), 0.2)
    torch.testing.assert_close(result, torch.tensor([loss]))


def test_value_loss_outside_the_clip_still_pulls_towards_the_return() -> None:
    # V = 0.5 left [0.8, 1.2] away from R = 2: the clipped term alone has no gradient
    value = torch.tensor([0.5], requires_grad=True)
    clipped_value_loss(value, torch.tensor([1.0]), torch.tensor([2.0]), 0.2).sum().backward()
    assert value.grad is not None
    torch.testing.assert_close(value.grad, torch.tensor([-3.0]))  # 2 (0.5 - 2)


def test_value_loss_beyond_the_clip_towards_the_return_stands_still() -> None:
    value = torch.tensor([1.5], requires_grad=True)
    clipped_value_loss(value, torch.tensor([1.0]), torch.tensor([2.0]), 0.2).sum().backward()
    assert value.grad is not None
    assert torch.equal(value.grad, torch.zeros(1))


@pytest.mark.parametrize("clip", [math.inf, torch.tensor([[math.inf]])])
def test_value_loss_without_clipping_is_the_squared_error(clip: float | torch.Tensor) -> None:
    values, old, returns = torch.randn(3, 5, 1, 1)
    torch.testing.assert_close(clipped_value_loss(values, old, returns, clip), (returns - values) ** 2)


def test_value_loss_takes_a_clip_per_agent() -> None:
    values, old, returns = torch.full((1, 2, 1), 1.5), torch.ones(1, 2, 1), torch.full((1, 2, 1), 2.0)
    loss = clipped_value_loss(values, old, returns, torch.tensor([[0.2], [math.inf]]))
    torch.testing.assert_close(loss.flatten(), torch.tensor([0.64, 0.25]))


def test_kl_estimate_by_hand() -> None:
    # (2 - 1) - log 2, (0.5 - 1) + log 2
    x = torch.tensor([math.log(2.0), -math.log(2.0)])
    torch.testing.assert_close(kl_estimate(x), torch.tensor([1 - math.log(2.0), math.log(2.0) - 0.5]))


def test_kl_estimate_is_zero_at_zero_and_never_negative() -> None:
    assert torch.equal(kl_estimate(torch.zeros(3)), torch.zeros(3))
    x = torch.cat([torch.linspace(-8, 8, 1001), torch.logspace(-8, -1, 50), -torch.logspace(-8, -1, 50)])
    assert bool((kl_estimate(x) >= 0).all())


def test_kl_estimate_averages_to_the_divergence() -> None:
    old, new = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.3, 1.2)
    x = old.sample(torch.Size([200_000]))
    estimate = kl_estimate(new.log_prob(x) - old.log_prob(x)).mean()
    torch.testing.assert_close(estimate, torch.distributions.kl_divergence(old, new), atol=2e-3, rtol=0)

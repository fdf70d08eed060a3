from __future__ import annotations

import math

import pytest
import torch

from coterie.functional import KL_ESTIMATORS, clipped_surrogate_loss, clipped_value_loss, kl_estimate


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
    ("ratio", "advantage", "loss"),
    [
        (1.5, 2.0, -2.56),  # clipped from above at 1.28: -1.28 * 2
        (1.25, 2.0, -2.5),  # below 1.28: -1.25 * 2
        (0.5, -2.0, 1.8),  # clipped from below at 0.9: -(0.9 * -2)
        (0.95, -2.0, 1.9),  # above 0.9
        (0.5, 2.0, -1.0),  # the minimum is the unclipped
        (1.5, -2.0, 3.0),
    ],
)
@pytest.mark.parametrize("kinds", ["numbers", "tensors", "low a tensor", "high a tensor"])
def test_surrogate_takes_unequal_clips(ratio: float, advantage: float, loss: float, kinds: str) -> None:
    low: float | torch.Tensor = torch.tensor([[0.1]]) if kinds in ("tensors", "low a tensor") else 0.1
    high: float | torch.Tensor = torch.tensor([[0.28]]) if kinds in ("tensors", "high a tensor") else 0.28
    log_ratio = torch.tensor([[[math.log(ratio)]]])
    result = clipped_surrogate_loss(log_ratio, torch.tensor([[[advantage]]]), (low, high))
    torch.testing.assert_close(result, torch.tensor([[[loss]]]))


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [(1.25, 2.0, True), (1.3, 2.0, False), (0.85, -2.0, False), (0.95, -2.0, True), (0.85, 2.0, True)],
)
def test_unequal_clips_stop_the_gradient_on_their_own_side(ratio: float, advantage: float, moves: bool) -> None:
    log_ratio = torch.tensor([math.log(ratio)], requires_grad=True)
    clipped_surrogate_loss(log_ratio, torch.tensor([advantage]), (0.1, 0.28)).sum().backward()
    assert log_ratio.grad is not None
    torch.testing.assert_close(log_ratio.grad, torch.tensor([-ratio * advantage if moves else 0.0]))


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


@pytest.mark.parametrize(
    ("value", "old", "target", "loss"),
    [
        (1.1, 1.0, 2.0, 0.7),  # 0.9 > delta = 0.5: 0.5 * (1.8 - 0.5) = 0.65; clipped at 1.05: 0.5 * (1.9 - 0.5)
        (1.04, 1.0, 1.3, 0.0676),  # 0.26 within delta and the clip: 0.26^2
        (0.5, 1.0, 2.0, 1.25),  # 1.5 and, clipped at 0.95, 1.05: 0.5 * (3 - 0.5)
        (1.5, 1.0, 1.0, 0.25),  # 0.5 = delta: 0.5^2
    ],
)
def test_huber_value_loss_by_hand(value: float, old: float, target: float, loss: float) -> None:
    result = clipped_value_loss(torch.tensor([value]), torch.tensor([old]), torch.tensor([target]), 0.05, 0.5)
    torch.testing.assert_close(result, torch.tensor([loss]))


@pytest.mark.parametrize("clip", [math.inf, 0.2])
def test_huber_loss_is_twice_that_of_torch(clip: float) -> None:
    values, old, returns = 3 * torch.randn(3, 50, 1, 1)
    mine = clipped_value_loss(values, old, returns, clip, 1.3)
    near = old + (values - old).clamp(-clip, clip)
    both = [torch.nn.functional.huber_loss(v, returns, reduction="none", delta=1.3) for v in (values, near)]
    torch.testing.assert_close(mine, 2.0 * torch.maximum(*both))


@pytest.mark.parametrize("delta", [math.inf, 1e6, torch.tensor([[math.inf]])])
def test_huber_loss_of_small_errors_is_the_squared_error(delta: float | torch.Tensor) -> None:
    values, old, returns = torch.randn(3, 5, 1, 1)
    for clip in (math.inf, 0.2):
        assert torch.equal(
            clipped_value_loss(values, old, returns, clip, delta), clipped_value_loss(values, old, returns, clip)
        )


def test_huber_loss_bounds_the_gradient() -> None:
    # 2 e within delta, 2 delta beyond, 0 at 0
    values = torch.tensor([0.0, 0.3, -0.4, 5.0, -70.0], requires_grad=True)
    clipped_value_loss(values, values.detach(), torch.zeros(5), math.inf, 0.5).sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.tensor([0.0, 0.6, -0.8, 1.0, -1.0]))


def test_huber_loss_takes_a_delta_per_agent() -> None:
    errors = torch.full((1, 2, 1), 2.0)
    loss = clipped_value_loss(errors, errors, torch.zeros(1, 2, 1), math.inf, torch.tensor([[1.0], [math.inf]]))
    torch.testing.assert_close(loss.flatten(), torch.tensor([3.0, 4.0]))  # 1 (4 - 1), 2^2


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


def test_all_estimators_by_hand() -> None:
    # log w = log 2: -log 2, (log 2)^2 / 2, 1 - log 2
    x = torch.tensor([math.log(2.0)])
    expected = {"k1": -math.log(2.0), "k2": math.log(2.0) ** 2 / 2, "k3": 1 - math.log(2.0)}
    assert {name: float(kl_estimate(x, name)) for name in KL_ESTIMATORS} == pytest.approx(expected)
    assert torch.equal(kl_estimate(x), kl_estimate(x, "k3"))
    with pytest.raises(ValueError, match=r"estimator: expected one of .*'k3'.*got 'k4'"):
        kl_estimate(x, "k4")


@pytest.mark.parametrize(("estimator", "tolerance"), [("k1", 1e-3), ("k2", 3e-3), ("k3", 5e-4)])
def test_every_estimator_averages_to_the_divergence_of_near_policies(estimator: str, tolerance: float) -> None:
    # log 0.9 + 1.0025 / 1.62 - 1/2 = 0.0135; the other way round it would be 0.0116. k1 has a deviation of 2.8e-4,
    # k2 a bias: log w = 0.104 + 0.062 x - 0.117 x^2 has the mean -0.0135 and the variance 0.0313, hence k2 0.0158
    old, new = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.05, 0.9)
    x = old.sample(torch.Size([400_000]))
    log_ratio = new.log_prob(x) - old.log_prob(x)
    divergence = torch.distributions.kl_divergence(old, new)
    torch.testing.assert_close(kl_estimate(log_ratio, estimator).mean(), divergence, atol=tolerance, rtol=0)

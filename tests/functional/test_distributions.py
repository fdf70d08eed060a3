from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal, TanhTransform, TransformedDistribution, kl_divergence

from coterie.functional import (
    bernoulli_entropy,
    bernoulli_log_prob,
    categorical_entropy,
    categorical_kl,
    categorical_log_prob,
    categorical_sample,
    normal_entropy,
    normal_kl,
    normal_log_prob,
    tanh_log_derivative,
    tanh_normal_entropy,
)


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 3)])
def test_normal_against_torch(shape: tuple[int, ...]) -> None:
    mean, log_std, x = torch.randn(3, *shape)
    reference = Normal(mean, log_std.exp())
    torch.testing.assert_close(normal_log_prob(x, mean, log_std), reference.log_prob(x))
    torch.testing.assert_close(normal_entropy(log_std), reference.entropy())


def test_normal_by_hand() -> None:
    # log N(0; 0, 1) = -log(2 pi) / 2; one std away: 1/2 less; entropy log(2 pi e) / 2
    peak = -0.5 * math.log(2 * math.pi)
    zero = torch.zeros(())
    assert float(normal_log_prob(zero, zero, zero)) == pytest.approx(peak)
    assert float(normal_log_prob(zero + 3.0, zero + 1.0, zero + math.log(2.0))) == pytest.approx(
        peak - 0.5 - math.log(2.0)
    )
    assert float(normal_entropy(zero)) == pytest.approx(0.5 * math.log(2 * math.pi * math.e))


def test_tanh_log_derivative_has_no_cancellation() -> None:
    x = torch.tensor([0.0, 0.5, -2.0, 9.0, 20.0, -50.0])
    # log(1 - tanh^2) -> log 4 - 2 |x|; the naive form is -inf from |x| = 9.1 in float32
    exact = torch.log1p(-torch.tanh(x.double()).square())
    exact[3:] = math.log(4.0) - 2 * x[3:].double().abs()
    torch.testing.assert_close(tanh_log_derivative(x).double(), exact, atol=1e-5, rtol=1e-6)


def test_tanh_density_against_torch() -> None:
    mean, log_std, u = torch.randn(3, 50, dtype=torch.float64)
    reference = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform(cache_size=1)])
    mine = normal_log_prob(u, mean, log_std) - tanh_log_derivative(u)
    torch.testing.assert_close(mine, reference.log_prob(torch.tanh(u)))


def exact_tanh_entropy(mean: float, log_std: float) -> float:
    """``-integral p(u) (log p(u) - log(1 - tanh(u)^2)) du`` by the trapezoidal rule."""
    u = np.linspace(mean - 12 * math.exp(log_std), mean + 12 * math.exp(log_std), 200_001)
    log_p = -0.5 * ((u - mean) / math.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
    slope = 2 * (math.log(2) - u - np.logaddexp(0, -2 * u))
    return float(np.trapezoid(-np.exp(log_p) * (log_p - slope), u))


# the smaller the spread, the smoother the integrand and the better 16 nodes do
@pytest.mark.parametrize(("log_std", "tolerance"), [(-3.0, 1e-5), (-1.0, 1e-5), (0.0, 2e-3), (0.7, 1e-2)])
@pytest.mark.parametrize("mean", [0.0, 0.7, -3.0])
def test_tanh_entropy_against_integration(mean: float, log_std: float, tolerance: float) -> None:
    result = tanh_normal_entropy(
        torch.tensor([mean], dtype=torch.float64), torch.tensor([log_std], dtype=torch.float64)
    )
    assert float(result) == pytest.approx(exact_tanh_entropy(mean, log_std), abs=tolerance)


def test_tanh_entropy_against_monte_carlo() -> None:
    mean, log_std = torch.tensor([0.4, -1.0]), torch.tensor([-0.5, 0.0])
    u = mean + log_std.exp() * torch.randn(400_000, 2)
    sampled = -(normal_log_prob(u, mean, log_std) - tanh_log_derivative(u)).mean(dim=0)
    torch.testing.assert_close(tanh_normal_entropy(mean, log_std), sampled, atol=1e-2, rtol=0)


def test_tanh_entropy_has_the_gradient_of_the_integral() -> None:
    mean = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    log_std = torch.tensor([-0.5], dtype=torch.float64, requires_grad=True)
    grads = torch.autograd.grad(tanh_normal_entropy(mean, log_std).sum(), (mean, log_std))
    h = 1e-4
    by_mean = (exact_tanh_entropy(0.7 + h, -0.5) - exact_tanh_entropy(0.7 - h, -0.5)) / (2 * h)
    by_std = (exact_tanh_entropy(0.7, -0.5 + h) - exact_tanh_entropy(0.7, -0.5 - h)) / (2 * h)
    assert float(grads[0]) == pytest.approx(by_mean, abs=1e-3)
    assert float(grads[1]) == pytest.approx(by_std, abs=1e-3)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
def test_categorical_against_torch(shape: tuple[int, ...]) -> None:
    logits = torch.randn(shape)
    actions = torch.randint(5, (*shape[:-1], 1))
    log_probs = torch.log_softmax(logits, -1)
    reference = Categorical(logits=logits)
    torch.testing.assert_close(
        categorical_log_prob(log_probs, actions).squeeze(-1), reference.log_prob(actions.squeeze(-1))
    )
    torch.testing.assert_close(categorical_entropy(log_probs).squeeze(-1), reference.entropy())


def test_categorical_sample_has_the_right_frequencies() -> None:
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4])
    # logits need no normalisation: any constant may be added
    draws = categorical_sample((probabilities.log() + 3.0).expand(100_000, 4))
    assert draws.shape == (100_000, 1)
    assert draws.dtype == torch.int64
    frequencies = torch.bincount(draws.flatten(), minlength=4) / 100_000
    # four standard deviations: 4 sqrt(0.4 * 0.6 / 1e5) = 0.0062
    torch.testing.assert_close(frequencies, probabilities, atol=6.2e-3, rtol=0)


def test_categorical_sample_draws_rows_independently() -> None:
    draws = categorical_sample(torch.zeros(20_000, 2, 2)).squeeze(-1).double()
    assert abs(float(torch.corrcoef(draws.T)[0, 1])) < 0.03
    assert abs(float(torch.corrcoef(torch.stack([draws[:-1, 0], draws[1:, 0]]))[0, 1])) < 0.03


def test_forbidden_actions_are_never_drawn() -> None:
    logits = torch.zeros(20_000, 4)
    logits[:, [0, 2]] = -math.inf
    assert set(categorical_sample(logits).flatten().tolist()) == {1, 3}


def masked(logits: Tensor, allowed: Tensor) -> Tensor:
    return torch.log_softmax(logits.masked_fill(~allowed, -math.inf), -1)


def test_entropy_with_forbidden_actions_is_that_of_the_rest() -> None:
    logits = torch.randn(6, 5)
    allowed = torch.tensor([True, False, True, True, False])
    rest = Categorical(logits=logits[:, allowed]).entropy()
    torch.testing.assert_close(categorical_entropy(masked(logits, allowed)).squeeze(-1), rest)


def test_entropy_with_one_allowed_action_is_zero_with_a_finite_gradient() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    entropy = categorical_entropy(masked(logits, torch.tensor([False, True, False, False])))
    torch.testing.assert_close(entropy, torch.zeros(3, 1))
    entropy.sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros(3, 4))


def test_masked_entropy_gradient_is_that_of_the_rest() -> None:
    logits = torch.randn(4, requires_grad=True)
    allowed = torch.tensor([True, False, True, True])
    (mine,) = torch.autograd.grad(categorical_entropy(masked(logits, allowed)).sum(), logits)
    (reference,) = torch.autograd.grad(Categorical(logits=logits[allowed]).entropy(), logits)
    torch.testing.assert_close(mine, reference)


# ---- divergences ----------------------------------------------------------------------------------------------------


def test_normal_divergence_against_torch() -> None:
    mean_p, log_std_p, mean_q, log_std_q = torch.randn(4, 50, dtype=torch.float64)
    reference = kl_divergence(Normal(mean_p, log_std_p.exp()), Normal(mean_q, log_std_q.exp()))
    torch.testing.assert_close(normal_kl(mean_p, log_std_p, mean_q, log_std_q), reference)


def test_normal_divergence_by_hand() -> None:
    # N(0, 1) from N(1, 2): log 2 + (1 + 1) / 8 - 1/2
    zero = torch.zeros(())
    assert float(normal_kl(zero, zero, zero + 1, zero + math.log(2))) == pytest.approx(math.log(2) + 0.25 - 0.5)


def test_divergences_of_equal_distributions_are_zero() -> None:
    mean, log_std = 100 * torch.randn(2, 50)
    assert torch.equal(normal_kl(mean, log_std / 100, mean, log_std / 100), torch.zeros(50))
    log_probs = masked(torch.randn(6, 5), torch.tensor([True, False, True, True, False]))
    assert torch.equal(categorical_kl(log_probs, log_probs), torch.zeros(6, 1))


def test_categorical_divergence_against_torch() -> None:
    p, q = torch.randn(2, 4, 3, 5)
    mine = categorical_kl(torch.log_softmax(p, -1), torch.log_softmax(q, -1))
    torch.testing.assert_close(mine.squeeze(-1), kl_divergence(Categorical(logits=p), Categorical(logits=q)))


def test_categorical_divergence_is_weighted_by_the_first() -> None:
    # p = (3/4, 1/4), q = (1/2, 1/2): 3/4 log(3/2) + 1/4 log(1/2); the other way round: 1/2 log(2/3) + 1/2 log 2
    p, q = torch.tensor([0.75, 0.25]).log(), torch.tensor([0.5, 0.5]).log()
    assert float(categorical_kl(p, q)) == pytest.approx(0.75 * math.log(1.5) - 0.25 * math.log(2))
    assert float(categorical_kl(q, p)) == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2))


def test_divergence_with_forbidden_actions_is_that_of_the_rest() -> None:
    p, q = (torch.randn(6, 5, requires_grad=True) for _ in range(2))
    allowed = torch.tensor([True, False, True, True, False])
    mine = categorical_kl(masked(p, allowed), masked(q, allowed))
    rest = kl_divergence(Categorical(logits=p[:, allowed]), Categorical(logits=q[:, allowed]))
    torch.testing.assert_close(mine.squeeze(-1), rest)
    for own, reference in zip(
        torch.autograd.grad(mine.sum(), (p, q)), torch.autograd.grad(rest.sum(), (p, q)), strict=True
    ):
        torch.testing.assert_close(own, reference)


def test_what_only_the_second_forbids_is_infinitely_far() -> None:
    p, q = torch.tensor([0.0, 0.0, -300.0]), torch.zeros(3)
    some, fewer = torch.tensor([True, True, False]), torch.tensor([True, False, False])
    assert float(categorical_kl(masked(p, some), masked(q, fewer))) == math.inf
    # p = (1, 0, 0) from q = (1/2, 1/2, 0): log 2
    assert float(categorical_kl(masked(p, fewer), masked(q, some))) == pytest.approx(math.log(2.0))
    # exp(-300) is 0 in float32: that q forbids it as well is no 0 times infinity
    far = categorical_kl(torch.log_softmax(p, -1), masked(q, some))
    assert float(far) == pytest.approx(0.0, abs=1e-6)


def test_bernoulli_against_torch() -> None:
    logits, actions = 4 * torch.randn(2, 30), torch.randint(2, (2, 30))
    reference = Bernoulli(logits=logits)
    torch.testing.assert_close(bernoulli_log_prob(logits, actions), reference.log_prob(actions.float()))
    torch.testing.assert_close(bernoulli_entropy(logits), reference.entropy())


def test_bernoulli_has_no_cancellation() -> None:
    # the entropy for log-odds l is about e^-l (1 + l) far out; log(1 - p) is -l
    logits = torch.tensor([-30.0, 30.0])
    torch.testing.assert_close(bernoulli_entropy(logits), torch.full((2,), 31 * math.exp(-30.0)), rtol=1e-5, atol=0)
    torch.testing.assert_close(bernoulli_log_prob(logits, torch.tensor([1, 0])), torch.tensor([-30.0, -30.0]))
    torch.testing.assert_close(
        bernoulli_log_prob(logits, torch.tensor([0, 1])), torch.full((2,), -math.exp(-30.0)), rtol=1e-5, atol=0
    )

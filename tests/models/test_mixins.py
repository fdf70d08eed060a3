from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Categorical,
    Independent,
    MultivariateNormal,
    Normal,
    TanhTransform,
    TransformedDistribution,
)

from coterie.models import (
    CategoricalMixin,
    DeterministicMixin,
    GaussianMixin,
    Model,
    MultiCategoricalMixin,
    MultivariateGaussianMixin,
    TanhGaussianMixin,
)

BOX = spaces.Box(np.array([-1.0, -0.5], np.float32), np.array([1.0, 2.0], np.float32))
FREE = spaces.Box(-np.inf, np.inf, (2,))


class Gaussian(GaussianMixin, Model):
    def __init__(self, space: gymnasium.Space = BOX, log_std: float = 0.3, **kwargs: Any) -> None:
        Model.__init__(self, 3, space)
        GaussianMixin.__init__(self, **kwargs)
        self.net = nn.Linear(3, 2)
        self.log_std_parameter = nn.Parameter(torch.full((2,), log_std))

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return self.net(inputs["states"]), self.log_std_parameter, {"extra": 1}


class Multivariate(MultivariateGaussianMixin, Gaussian):
    def __init__(self, **kwargs: Any) -> None:
        Gaussian.__init__(self)
        MultivariateGaussianMixin.__init__(self, **kwargs)


class Squashed(TanhGaussianMixin, Gaussian):
    def __init__(self, space: gymnasium.Space = BOX, log_std: float = 0.3, **kwargs: Any) -> None:
        Gaussian.__init__(self, space, log_std)
        TanhGaussianMixin.__init__(self, **kwargs)


class Choice(CategoricalMixin, Model):
    def __init__(self, probabilities: bool = False) -> None:
        Model.__init__(self, 3, spaces.Discrete(4))
        CategoricalMixin.__init__(self, unnormalized_log_prob=not probabilities)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1) if probabilities else nn.Identity())

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return self.net(inputs["states"]), {}


class Choices(MultiCategoricalMixin, Model):
    def __init__(self, space: gymnasium.Space | None = None, **kwargs: Any) -> None:
        Model.__init__(self, 3, spaces.MultiDiscrete([2, 3]) if space is None else space)
        MultiCategoricalMixin.__init__(self, **kwargs)
        self.net = nn.Linear(3, 5)

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return self.net(inputs["states"]), {}


class Critic(DeterministicMixin, Model):
    def __init__(self, output: float = 3.0, **kwargs: Any) -> None:
        Model.__init__(self, 3, BOX)
        DeterministicMixin.__init__(self, **kwargs)
        self.output = output

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return inputs["states"][:, :2] * 0 + self.output, {}


@pytest.fixture
def states() -> Tensor:
    return torch.randn(7, 3)


def mean_of(policy: Model, states: Tensor) -> Tensor:
    output: Tensor = policy.compute({"states": states})[0]
    return output


# ---- Gaussian -------------------------------------------------------------------------------------------------------


def test_gaussian_against_torch(states: Tensor) -> None:
    policy = Gaussian()
    actions, log_prob, outputs = policy.act({"states": states}, "policy")
    reference = Independent(Normal(mean_of(policy, states), math.exp(0.3)), 1)
    assert log_prob is not None
    torch.testing.assert_close(log_prob.squeeze(-1), reference.log_prob(actions))
    torch.testing.assert_close(policy.get_entropy("policy").squeeze(-1), reference.entropy())
    torch.testing.assert_close(outputs["mean_actions"], mean_of(policy, states))
    torch.testing.assert_close(policy.get_log_std("policy"), torch.full((7, 2), 0.3))
    torch.testing.assert_close(policy.distribution("policy").std, torch.full((2,), math.exp(0.3)))
    assert outputs["extra"] == 1


def test_multivariate_gaussian_against_torch(states: Tensor) -> None:
    policy = Multivariate()
    actions, log_prob, _ = policy.act({"states": states})
    reference = MultivariateNormal(mean_of(policy, states), torch.eye(2) * math.exp(0.6))
    assert log_prob is not None
    torch.testing.assert_close(log_prob.squeeze(-1), reference.log_prob(actions))
    torch.testing.assert_close(policy.get_entropy().squeeze(-1), reference.entropy())


def test_gaussian_samples_have_the_right_moments() -> None:
    policy = Gaussian(FREE)
    states = torch.randn(1, 3)
    actions, _, _ = policy.act({"states": states.expand(100_000, 3)})
    torch.testing.assert_close(actions.mean(0), mean_of(policy, states)[0], atol=2e-2, rtol=0)
    torch.testing.assert_close(actions.std(0), torch.full((2,), math.exp(0.3)), atol=2e-2, rtol=0)


def test_two_calls_draw_differently(states: Tensor) -> None:
    policy = Gaussian()
    assert not torch.equal(policy.act({"states": states})[0], policy.act({"states": states})[0])


@pytest.mark.parametrize("reduction", ["sum", "mean", "prod", "none"])
def test_gaussian_reductions(states: Tensor, reduction: str) -> None:
    policy = Gaussian(reduction=reduction)
    taken = torch.randn(7, 2)
    _, log_prob, _ = policy.act({"states": states, "taken_actions": taken})
    each = Normal(mean_of(policy, states), math.exp(0.3))
    combine = {
        "sum": lambda x: x.sum(-1, keepdim=True),
        "mean": lambda x: x.mean(-1, keepdim=True),
        "prod": lambda x: x.prod(-1, keepdim=True),
        "none": lambda x: x,
    }[reduction]
    torch.testing.assert_close(log_prob, combine(each.log_prob(taken)))
    torch.testing.assert_close(policy.get_entropy(), combine(each.entropy()))


def test_clipped_actions_keep_the_log_prob_of_the_drawn_value() -> None:
    policy, free = Gaussian(log_std=1.5, clip_actions=True), Gaussian(log_std=1.5)
    free.load_state_dict(policy.state_dict())
    states = torch.randn(4000, 3)
    torch.manual_seed(3)
    actions, log_prob, outputs = policy.act({"states": states})
    torch.manual_seed(3)
    drawn, drawn_log_prob, _ = free.act({"states": states})
    low, high = torch.tensor([-1.0, -0.5]), torch.tensor([1.0, 2.0])
    torch.testing.assert_close(actions, drawn.clamp(low, high))
    torch.testing.assert_close(log_prob, drawn_log_prob)
    outside = (drawn != actions).any(dim=-1)
    assert 0.5 < float(outside.float().mean()) < 1.0
    # at the clipped value the density of an unbounded normal is higher: the log-prob would be biased
    at_clipped = policy.distribution().log_prob(actions)
    assert not torch.allclose(at_clipped[outside], log_prob[outside])  # type: ignore[index]
    assert bool((outputs["mean_actions"] <= high).all())


def test_clip_actions_with_an_unbounded_side_clips_the_other() -> None:
    space = spaces.Box(np.array([0.0, -np.inf], np.float32), np.array([np.inf, np.inf], np.float32))
    actions, _, _ = Gaussian(space, log_std=1.5, clip_actions=True).act({"states": torch.randn(500, 3)})
    assert bool((actions[:, 0] >= 0).all())
    assert bool((actions[:, 1] < 0).any())


def test_taken_actions_are_evaluated_as_they_were_drawn(states: Tensor) -> None:
    policy = Gaussian(log_std=1.5, clip_actions=True)
    policy.act({"states": states})
    latent = policy.distribution().sample()
    actions, log_prob, _ = policy.act({"states": states, "taken_actions": latent})
    torch.testing.assert_close(log_prob, policy.distribution().log_prob(latent))
    torch.testing.assert_close(actions, policy.distribution().actions(latent))


@pytest.mark.parametrize(
    ("log_std", "kwargs", "expected"),
    [
        (5.0, {}, 2.0),
        (-30.0, {}, -20.0),
        (5.0, {"clip_log_std": False}, 5.0),
        (0.0, {"min_log_std": 0.5, "max_log_std": 1.0}, 0.5),
        (9.0, {"min_log_std": 0.5, "max_log_std": 1.0}, 1.0),
    ],
)
def test_log_std_range(states: Tensor, log_std: float, kwargs: dict[str, Any], expected: float) -> None:
    policy = Gaussian(log_std=log_std, **kwargs)
    policy.act({"states": states})
    torch.testing.assert_close(policy.get_log_std(), torch.full((7, 2), expected))


def test_roles_have_distributions_of_their_own(states: Tensor) -> None:
    policy = Gaussian()
    policy.act({"states": states}, "a")
    with pytest.raises(RuntimeError, match="role='b'"):
        policy.distribution("b")
    first = policy.distribution("a")
    policy.act({"states": states + 1}, "b")
    assert policy.distribution("a") is first
    with pytest.raises(RuntimeError, match="call act"):
        Gaussian().get_entropy()


def test_gaussian_refuses_bad_settings() -> None:
    with pytest.raises(ValueError, match="reduction"):
        Gaussian(reduction="max")
    with pytest.raises(ValueError, match="min_log_std <= max_log_std"):
        Gaussian(min_log_std=1.0, max_log_std=0.0)


# ---- tanh-squashed Gaussian -----------------------------------------------------------------------------------------


def test_squashed_gaussian_against_torch(states: Tensor) -> None:
    policy = Squashed().double()
    states = states.double()
    policy.act({"states": states})
    distribution = policy.distribution()
    latent = distribution.sample()
    actions, log_prob, outputs = policy.act({"states": states, "taken_actions": latent})
    center, half = torch.tensor([0.0, 0.75]).double(), torch.tensor([1.0, 1.25]).double()
    std = policy.log_std_parameter.exp()
    reference = TransformedDistribution(
        Normal(mean_of(policy, states), std), [TanhTransform(cache_size=1), AffineTransform(center, half, cache_size=1)]
    )
    assert log_prob is not None
    torch.testing.assert_close(log_prob.squeeze(-1), reference.log_prob(actions).sum(-1), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(outputs["mean_actions"], center + half * torch.tanh(mean_of(policy, states)))
    draws = reference.sample(torch.Size([100_000]))
    sampled = -reference.log_prob(draws).sum(-1).mean(0)
    torch.testing.assert_close(policy.get_entropy().squeeze(-1), sampled, atol=2e-2, rtol=0)


def test_squashed_actions_stay_within_bounds_and_go_round() -> None:
    policy = Squashed(log_std=1.0)
    actions, _, _ = policy.act({"states": 3 * torch.randn(2000, 3)})
    low, high = torch.tensor([-1.0, -0.5]), torch.tensor([1.0, 2.0])
    assert bool(((actions >= low) & (actions <= high)).all())
    distribution = policy.distribution()
    latent = distribution.sample().clamp(-3, 3)
    torch.testing.assert_close(distribution.latent(distribution.actions(latent)), latent, atol=1e-3, rtol=1e-3)
    edges = distribution.latent(torch.stack([low, high]))
    assert bool(torch.isfinite(edges).all())
    assert bool(torch.isfinite(distribution.log_prob(edges[:1].expand(2000, 2))).all())


@pytest.mark.parametrize(
    "space",
    [FREE, spaces.Box(np.array([0.0, 0.0], np.float32), np.array([1.0, np.inf], np.float32)), spaces.Discrete(2)],
)
def test_squashed_gaussian_needs_a_bounded_box(space: gymnasium.Space) -> None:
    with pytest.raises(ValueError, match="bounded Box"):
        Squashed(space)


# ---- categorical ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probabilities", [False, True])
def test_categorical_against_torch(states: Tensor, probabilities: bool) -> None:
    policy = Choice(probabilities)
    actions, log_prob, outputs = policy.act({"states": states})
    output = mean_of(policy, states)
    reference = Categorical(probs=output) if probabilities else Categorical(logits=output)
    assert actions.shape == (7, 1)
    assert actions.dtype == torch.int64
    assert log_prob is not None
    torch.testing.assert_close(log_prob.squeeze(-1), reference.log_prob(actions.squeeze(-1)))
    torch.testing.assert_close(policy.get_entropy().squeeze(-1), reference.entropy())
    assert torch.equal(outputs["mean_actions"].squeeze(-1), output.argmax(-1))
    assert policy.distribution().std is None
    taken = torch.randint(4, (7, 1))
    again, log_prob, _ = policy.act({"states": states, "taken_actions": taken})
    assert torch.equal(again, taken)
    assert log_prob is not None
    torch.testing.assert_close(log_prob.squeeze(-1), reference.log_prob(taken.squeeze(-1)))


def test_a_probability_of_zero_has_a_finite_log() -> None:
    policy = Choice(probabilities=True)
    distribution = policy.make_distribution([torch.tensor([[0.0, 0.5, 0.5, 0.0]])])
    assert bool(torch.isfinite(distribution.log_prob(torch.tensor([[0]]))).all())
    torch.testing.assert_close(distribution.entropy(), torch.tensor([[math.log(2.0)]]))


def test_multi_categorical_against_torch(states: Tensor) -> None:
    policy = Choices()
    actions, log_prob, outputs = policy.act({"states": states})
    logits = mean_of(policy, states)
    parts = [Categorical(logits=logits[:, :2]), Categorical(logits=logits[:, 2:])]
    assert actions.shape == (7, 2)
    assert log_prob is not None
    torch.testing.assert_close(
        log_prob.squeeze(-1), parts[0].log_prob(actions[:, 0]) + parts[1].log_prob(actions[:, 1])
    )
    torch.testing.assert_close(policy.get_entropy().squeeze(-1), parts[0].entropy() + parts[1].entropy())
    modes = torch.stack([logits[:, :2].argmax(-1), logits[:, 2:].argmax(-1)], dim=-1)
    assert torch.equal(outputs["mean_actions"], modes)


def test_multi_categorical_frequencies() -> None:
    policy = Choices()
    first, second = torch.tensor([0.3, 0.7]), torch.tensor([0.2, 0.5, 0.3])
    logits = torch.cat([first.log(), second.log()]).expand(50_000, 5)
    draws = policy.make_distribution([logits]).sample()
    for column, p in zip(draws.unbind(-1), (first, second), strict=True):
        torch.testing.assert_close(torch.bincount(column) / 50_000, p, atol=1e-2, rtol=0)


def test_multi_categorical_reduction_none_has_a_column_for_each_choice(states: Tensor) -> None:
    policy = Choices(reduction="none")
    _, log_prob, _ = policy.act({"states": states})
    assert log_prob is not None
    assert log_prob.shape == (7, 2)
    assert policy.get_entropy().shape == (7, 2)


def test_multi_categorical_refuses_bad_settings() -> None:
    with pytest.raises(TypeError, match="MultiDiscrete"):
        Choices(spaces.Discrete(5))
    with pytest.raises(ValueError, match="reduction"):
        Choices(reduction="max")


# ---- deterministic, and what all have in common ---------------------------------------------------------------------


def test_deterministic(states: Tensor) -> None:
    value, log_prob, outputs = Critic().act({"states": states}, "value")
    torch.testing.assert_close(value, torch.full((7, 2), 3.0))
    assert log_prob is None
    assert outputs == {}


def test_deterministic_clips_to_the_bounds(states: Tensor) -> None:
    value, _, _ = Critic(clip_actions=True).act({"states": states})
    torch.testing.assert_close(value, torch.tensor([1.0, 2.0]).expand(7, 2))


@pytest.mark.parametrize("output", [None, 3.0, {}, ({},), (), "mean"])
def test_a_bad_output_of_compute_names_the_model(states: Tensor, output: Any) -> None:
    class Wrong(Gaussian):
        def compute(self, inputs: Any, role: str = "") -> Any:
            return output

    with pytest.raises(TypeError, match=r"Wrong.compute returned .*expected a tuple"):
        Wrong().act({"states": states})


def test_a_bare_tensor_is_a_bad_output(states: Tensor) -> None:
    class Wrong(Critic):
        def compute(self, inputs: Any, role: str = "") -> Any:
            return inputs["states"]

    with pytest.raises(TypeError, match=r"Wrong.compute returned Tensor"):
        Wrong().act({"states": states})


@pytest.mark.parametrize("kind", [Gaussian, Squashed])
def test_a_gaussian_without_log_std_is_told_so(states: Tensor, kind: type[Gaussian]) -> None:
    class Wrong(kind):  # type: ignore[misc, valid-type]
        def compute(self, inputs: Any, role: str = "") -> Any:
            return self.net(inputs["states"]), {}

    with pytest.raises(TypeError, match=r"Wrong.compute must return \(mean, log_std"):
        Wrong().act({"states": states})


def test_gradients_reach_every_parameter(states: Tensor) -> None:
    for policy in (Gaussian(), Squashed(), Choice(), Choices(), Multivariate()):
        policy.act({"states": states})
        taken = policy.distribution().sample().detach()
        _, log_prob, _ = policy.act({"states": states, "taken_actions": taken})
        assert log_prob is not None
        (log_prob.sum() + policy.get_entropy().sum()).backward()
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in policy.parameters()), type(policy)

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
    Bernoulli,
    Categorical,
    Independent,
    MultivariateNormal,
    Normal,
    TanhTransform,
    TransformedDistribution,
)

from coterie.models import (
    BernoulliMixin,
    CategoricalMixin,
    DeterministicMixin,
    GaussianMixin,
    Model,
    MultiCategoricalMixin,
    MultivariateGaussianMixin,
    TanhGaussianMixin,
)
from coterie.models.distributions import check_action_masks

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


# ---- action masks ---------------------------------------------------------------------------------------------------

NVEC = (2, 3)


def random_masks(rows: int, nvec: tuple[int, ...]) -> Tensor:
    """Masks that allow something everywhere; the first row allows one choice of each, the last all."""
    masks = torch.rand(rows, sum(nvec)) < 0.5
    for part in masks.split(nvec, dim=-1):
        part.scatter_(-1, torch.randint(part.shape[-1], (rows, 1)), True)
        part[0] = False
        part[0, 1] = True
        part[-1] = True
    return masks


@pytest.mark.parametrize("probabilities", [False, True])
def test_masked_categorical_is_that_of_the_allowed(probabilities: bool) -> None:
    policy, masks = Choice(probabilities), random_masks(200, (4,))
    states = torch.randn(200, 3)
    actions, log_prob, outputs = policy.act({"states": states, "action_masks": masks})
    output = mean_of(policy, states)
    weights = (output if probabilities else output.softmax(-1)) * masks
    reference = Categorical(probs=weights)
    assert bool(masks.gather(-1, actions).all())
    assert log_prob is not None
    torch.testing.assert_close(log_prob.squeeze(-1), reference.log_prob(actions.squeeze(-1)))
    torch.testing.assert_close(policy.get_entropy().squeeze(-1), reference.entropy(), atol=1e-6, rtol=1e-5)
    assert torch.equal(outputs["mean_actions"].squeeze(-1), weights.argmax(-1))
    # every forbidden action has probability exactly 0, the others sum to 1
    each = torch.stack([policy.distribution().log_prob(torch.full((200, 1), a)) for a in range(4)], dim=-1).squeeze(-2)
    assert torch.equal(each == -math.inf, ~masks)
    torch.testing.assert_close(each.exp().sum(-1), torch.ones(200))
    # as evaluated afterwards
    _, again, _ = policy.act({"states": states, "action_masks": masks, "taken_actions": actions})
    assert torch.equal(again, log_prob)  # type: ignore[arg-type]


def test_masked_draws_have_the_frequencies_of_the_allowed() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(60_000, 4)
    masks = torch.tensor([False, True, False, True]).expand(60_000, 4)
    draws = Choice().make_distribution([logits], masks).sample()
    expected = torch.tensor([0.0, 1 / 3, 0.0, 2 / 3])
    torch.testing.assert_close(torch.bincount(draws.flatten(), minlength=4) / 60_000, expected, atol=8e-3, rtol=0)


def test_masked_multi_categorical_is_a_product_of_masked_ones() -> None:
    policy, masks, states = Choices(), random_masks(200, NVEC), torch.randn(200, 3)
    actions, log_prob, outputs = policy.act({"states": states, "action_masks": masks})
    weights = mean_of(policy, states).exp() * masks
    parts = [Categorical(probs=part) for part in weights.split(NVEC, dim=-1)]
    expected = sum(part.log_prob(column) for part, column in zip(parts, actions.unbind(-1), strict=True))
    assert log_prob is not None
    torch.testing.assert_close(log_prob.squeeze(-1), expected, atol=1e-6, rtol=1e-5)
    entropy = parts[0].entropy() + parts[1].entropy()
    torch.testing.assert_close(policy.get_entropy().squeeze(-1), entropy, atol=1e-6, rtol=1e-5)
    modes = torch.stack([part.probs.argmax(-1) for part in parts], dim=-1)
    assert torch.equal(outputs["mean_actions"], modes)
    for mask, column in zip(masks.split(NVEC, dim=-1), actions.split(1, dim=-1), strict=True):
        assert bool(mask.gather(-1, column).all())


@pytest.mark.parametrize("kind", [Choice, Choices])
def test_gradients_of_masked_policies_are_those_of_the_allowed(kind: Any) -> None:
    nvec = (4,) if kind is Choice else NVEC
    masks, logits = random_masks(50, nvec), torch.randn(50, sum(nvec), requires_grad=True)
    distribution = kind().make_distribution([logits], masks)
    latent = distribution.sample()
    (mine,) = torch.autograd.grad((2.0 * distribution.log_prob(latent) + distribution.entropy()).sum(), logits)
    expected = torch.zeros(50, sum(nvec))
    for row in range(50):
        start = 0
        for n, choice in zip(nvec, latent[row].tolist(), strict=True):
            columns = torch.arange(start, start + n)[masks[row, start : start + n]]
            allowed = logits.detach()[row, columns].requires_grad_()
            reference = Categorical(logits=allowed)
            position = columns.tolist().index(start + choice)
            score = 2.0 * reference.log_prob(torch.tensor(position)) + reference.entropy()
            expected[row, columns] = torch.autograd.grad(score, allowed)[0]
            start += n
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(mine[~masks], torch.zeros_like(mine[~masks]))


def test_masks_broadcast_over_what_outputs_share() -> None:
    logits, masks = torch.randn(1, 2, 4), random_masks(14, (4,)).view(7, 2, 4)
    distribution = Choice().make_distribution([logits], masks)
    assert distribution.sample().shape == (7, 2, 1)
    expected = Choice().make_distribution([logits.expand(7, 2, 4)], masks).entropy()
    torch.testing.assert_close(distribution.entropy(), expected)


@pytest.mark.parametrize("masks", [torch.ones(7, 3, dtype=torch.bool), torch.ones(7, 4), torch.ones(7, 4).long()])
def test_masks_of_another_form_are_refused(states: Tensor, masks: Tensor) -> None:
    with pytest.raises(ValueError, match=r"action_masks: expected bool \[..., 4\].*got torch"):
        Choice().act({"states": states, "action_masks": masks})
    with pytest.raises(ValueError, match=r"action_masks: expected bool \[..., 5\]"):
        Choices().act({"states": states, "action_masks": masks})


def test_a_row_that_allows_nothing_is_named() -> None:
    masks = torch.ones(3, 2, 5, dtype=torch.bool)
    check_action_masks(masks, 5)
    check_action_masks(masks, NVEC)
    masks[1, 0, :2] = False
    check_action_masks(masks, 5)
    check_action_masks(masks, spaces.Discrete(5))
    with pytest.raises(
        ValueError, match=r"nothing is allowed in row \[1, 0\], dimension 0 of 2: an agent that is to act"
    ):
        check_action_masks(masks, NVEC)
    masks[1, 0] = False
    with pytest.raises(ValueError, match=r"nothing is allowed in row \[1, 0\]: an agent"):
        check_action_masks(masks, 5)
    masks[1, 0] = True
    masks[2, 1, 2:] = False
    with pytest.raises(ValueError, match=r"nothing is allowed in environment 2 of agent 'b', dimension 1 of 2"):
        check_action_masks(masks, spaces.MultiDiscrete(NVEC), ["a", "b"])
    with pytest.raises(ValueError, match=r"expected bool \[..., 4\]"):
        check_action_masks(masks, 4)
    with pytest.raises(ValueError, match="expected a Discrete or MultiDiscrete action space, got Box"):
        check_action_masks(masks, BOX)


@pytest.mark.parametrize("kind", [Gaussian, Squashed])
def test_a_gaussian_has_no_masks(states: Tensor, kind: type[Gaussian]) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__}: a Gaussian has no action masks"):
        kind().act({"states": states, "action_masks": torch.ones(7, 2, dtype=torch.bool)})


def test_a_mixin_that_knows_of_no_masks_still_acts(states: Tensor) -> None:
    class Own(Choice):
        def make_distribution(self, tensors: Any) -> Any:  # type: ignore[override]
            return super().make_distribution(tensors)

    assert Own().act({"states": states})[0].shape == (7, 1)
    assert Own().act({"states": states, "action_masks": None})[0].shape == (7, 1)


# ---- yes-or-no choices ----------------------------------------------------------------------------------------------


class Switches(BernoulliMixin, Model):
    def __init__(self, space: gymnasium.Space | None = None, probabilities: bool = False, **kwargs: Any) -> None:
        Model.__init__(self, 3, spaces.MultiBinary(4) if space is None else space)
        BernoulliMixin.__init__(self, unnormalized_log_prob=not probabilities, **kwargs)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid() if probabilities else nn.Identity())

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return self.net(inputs["states"]), {}


@pytest.mark.parametrize("probabilities", [False, True])
def test_bernoulli_against_torch(states: Tensor, probabilities: bool) -> None:
    policy = Switches(probabilities=probabilities)
    actions, log_prob, outputs = policy.act({"states": states})
    output = mean_of(policy, states)
    reference = Independent(Bernoulli(probs=output) if probabilities else Bernoulli(logits=output), 1)
    assert actions.shape == (7, 4)
    assert actions.dtype == torch.int64
    assert log_prob is not None
    torch.testing.assert_close(log_prob.squeeze(-1), reference.log_prob(actions.float()))
    torch.testing.assert_close(policy.get_entropy().squeeze(-1), reference.entropy())
    assert torch.equal(outputs["mean_actions"], (output > (0.5 if probabilities else 0.0)).long())
    assert outputs["mean_actions"].dtype == torch.int64
    assert policy.distribution().std is None


def test_bernoulli_by_hand() -> None:
    # p = 3/4: log 3/4, log 1/4; entropy 3/4 log 4/3 + 1/4 log 4
    logits = torch.full((1, 2), math.log(3.0))
    distribution = Switches(spaces.MultiBinary(2), reduction="none").make_distribution([logits])
    log_prob = distribution.log_prob(torch.tensor([[1, 0]]))
    torch.testing.assert_close(log_prob, torch.tensor([[math.log(0.75), math.log(0.25)]]))
    entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    torch.testing.assert_close(distribution.entropy(), torch.full((1, 2), entropy))


def test_bernoulli_frequencies() -> None:
    p = torch.tensor([0.0, 0.1, 0.7, 1.0])
    draws = Switches(probabilities=True).make_distribution([p.expand(50_000, 4)]).sample()
    assert set(draws.flatten().tolist()) == {0, 1}
    torch.testing.assert_close(draws.float().mean(0), p, atol=1e-2, rtol=0)


@pytest.mark.parametrize("probabilities", [False, True])
def test_bernoulli_at_the_extremes_is_finite(probabilities: bool) -> None:
    extremes = torch.tensor([[0.0, 1.0] if probabilities else [-200.0, 200.0]], requires_grad=True)
    distribution = Switches(spaces.MultiBinary(2), probabilities, reduction="none").make_distribution([extremes])
    terms = distribution.log_prob(torch.tensor([[0, 1]])), distribution.entropy()
    for term in terms:
        torch.testing.assert_close(term, torch.zeros(1, 2), atol=1e-5, rtol=0)
    unlikely = distribution.log_prob(torch.tensor([[1, 0]]))
    assert bool(torch.isfinite(unlikely).all())
    (unlikely.sum() + sum(term.sum() for term in terms)).backward()
    assert extremes.grad is not None
    assert bool(torch.isfinite(extremes.grad).all())


@pytest.mark.parametrize("reduction", ["sum", "mean", "prod", "none"])
def test_bernoulli_reductions(states: Tensor, reduction: str) -> None:
    policy = Switches(reduction=reduction)
    taken = torch.randint(2, (7, 4))
    _, log_prob, _ = policy.act({"states": states, "taken_actions": taken})
    each = Bernoulli(logits=mean_of(policy, states))
    combine = {
        "sum": lambda x: x.sum(-1, keepdim=True),
        "mean": lambda x: x.mean(-1, keepdim=True),
        "prod": lambda x: x.prod(-1, keepdim=True),
        "none": lambda x: x,
    }[reduction]
    torch.testing.assert_close(log_prob, combine(each.log_prob(taken.float())))
    torch.testing.assert_close(policy.get_entropy(), combine(each.entropy()))


def test_bernoulli_refuses_bad_settings(states: Tensor) -> None:
    with pytest.raises(TypeError, match="MultiBinary"):
        Switches(spaces.MultiDiscrete([2, 2]))
    with pytest.raises(ValueError, match="reduction"):
        Switches(reduction="max")
    with pytest.raises(ValueError, match="Switches: a MultiBinary action has no action masks"):
        Switches().act({"states": states, "action_masks": torch.ones(7, 4, dtype=torch.bool)})
    assert Switches().settings() != Switches(reduction="mean").settings()
    assert Switches().settings() != Switches(probabilities=True).settings()


# ---- standard deviations from outside -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Gaussian, Squashed])
@pytest.mark.parametrize("std", [9.0, torch.tensor(0.4), torch.tensor([0.4, 9.0]), torch.rand(7, 2) + 0.1])
def test_a_given_std_replaces_the_policys_own(states: Tensor, kind: type[Gaussian], std: float | Tensor) -> None:
    policy = kind(max_log_std=0.5)  # what is given is not clipped
    mean = mean_of(policy, states)
    log_std = torch.as_tensor(std).log()
    reference = kind(clip_log_std=False).make_distribution([mean, log_std])
    for tensors in ([mean, policy.log_std_parameter], [mean]):
        mine = policy.make_distribution(tensors, std=std)
        assert mine.std is not None
        torch.testing.assert_close(mine.std, torch.as_tensor(std).expand(7, 2))
        latent = mine.sample()
        torch.testing.assert_close(mine.log_prob(latent), reference.log_prob(latent))
        torch.testing.assert_close(mine.entropy(), reference.entropy())


def test_a_std_of_zero_is_refused(states: Tensor) -> None:
    for std in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="std: expected a positive number"):
            Gaussian().make_distribution([torch.zeros(7, 2), torch.zeros(2)], std=std)


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
    for policy in (Gaussian(), Squashed(), Choice(), Choices(), Multivariate(), Switches()):
        policy.act({"states": states})
        taken = policy.distribution().sample().detach()
        _, log_prob, _ = policy.act({"states": states, "taken_actions": taken})
        assert log_prob is not None
        (log_prob.sum() + policy.get_entropy().sum()).backward()
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in policy.parameters()), type(policy)

"""Action values: the epsilon-greedy distribution worked out by hand, the mixin, and the ready-made network."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.models import Model, QMixin, QNetwork
from coterie.models.batch import ModelBatch
from coterie.models.distributions import EpsilonGreedy
from coterie.models.flat_parameters import FlatParameters
from coterie.models.sequences import Recurrence, recurrence_of

NAN, INF = math.nan, math.inf
OBSERVATION = spaces.Box(-1.0, 1.0, (3,))
DISCRETE = spaces.Discrete(4)


def table(distribution: EpsilonGreedy, n: int) -> Tensor:
    """exp(log_prob) of every action ``[..., n]``."""
    leading = distribution.mode().shape[:-1]
    columns = [distribution.log_prob(torch.full((*leading, 1), a)) for a in range(n)]
    return torch.cat(columns, dim=-1).exp()


# ---- the distribution ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q", "allowed", "epsilon", "expected"),
    [
        # 4 allowed: each gets .2 / 4 = .05, the greedy one .8 more
        ([1.0, 3.0, 2.0, 0.0], [1, 1, 1, 1], 0.2, [0.05, 0.85, 0.05, 0.05]),
        # 3 allowed, the largest value forbidden: each .3 / 3 = .1, the greedy one of them .7 more
        ([1.0, 3.0, 2.0, 0.0], [1, 0, 1, 1], 0.3, [0.1, 0.0, 0.8, 0.1]),
        # 1 allowed
        ([1.0, 3.0, 2.0, 0.0], [0, 0, 0, 1], 0.4, [0.0, 0.0, 0.0, 1.0]),
        # ties: the first of those allowed
        ([2.0, 2.0, 2.0, 1.0], [0, 1, 1, 1], 0.0, [0.0, 1.0, 0.0, 0.0]),
        ([2.0, 2.0, 2.0, 1.0], [0, 1, 1, 1], 0.6, [0.0, 0.6, 0.2, 0.2]),
        ([1.0, 3.0, 2.0, 0.0], [1, 1, 1, 0], 1.0, [1 / 3, 1 / 3, 1 / 3, 0.0]),
        # what is not a number counts as the largest, where it is allowed; an overflow below all others is still allowed
        ([1.0, NAN, 2.0, NAN], [1, 0, 1, 1], 0.3, [0.1, 0.0, 0.1, 0.8]),
        ([9.0, -INF, -INF, 9.0], [0, 1, 1, 0], 0.5, [0.0, 0.75, 0.25, 0.0]),
        ([9.0, -INF, 1.0, INF], [1, 1, 1, 0], 0.0, [1.0, 0.0, 0.0, 0.0]),
    ],
)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_probabilities_by_hand(
    q: list[float], allowed: list[int], epsilon: float, expected: list[float], as_tensor: bool
) -> None:
    masks = torch.tensor([allowed]).bool()
    given = torch.tensor([[epsilon]]) if as_tensor else epsilon
    distribution = EpsilonGreedy(torch.tensor([q]), given, masks)
    probabilities = torch.tensor([expected])
    torch.testing.assert_close(table(distribution, 4), probabilities)
    torch.testing.assert_close(distribution.probabilities, probabilities)
    entropy = -sum(p * math.log(p) for p in expected if p > 0)
    torch.testing.assert_close(distribution.entropy(), torch.tensor([[entropy]]), atol=1e-6, rtol=1e-6)
    if epsilon < 1.0:
        assert distribution.mode().tolist() == [[expected.index(max(expected))]]
    if all(allowed):
        torch.testing.assert_close(EpsilonGreedy(torch.tensor([q]), given).probabilities, probabilities)


@pytest.mark.parametrize("masked", [False, True])
def test_draws_have_their_probabilities(masked: bool) -> None:
    q = torch.tensor([0.5, -1.0, 2.0, NAN if masked else 0.0, 1.0])
    masks = torch.tensor([True, True, True, False, True]) if masked else None
    # without: .4 / 5 = .08 each and .6; with: .4 / 4 = .1 each and .6
    expected = torch.tensor([0.1, 0.1, 0.7, 0.0, 0.1] if masked else [0.08, 0.08, 0.68, 0.08, 0.08])
    rows = 60_000
    draws = EpsilonGreedy(q.expand(rows, 5), 0.4, None if masks is None else masks.expand(rows, 5)).sample()
    assert draws.shape == (rows, 1)
    assert draws.dtype == torch.int64
    torch.testing.assert_close(torch.bincount(draws.flatten(), minlength=5) / rows, expected, atol=8e-3, rtol=0)


def test_every_agent_has_its_own_epsilon_and_every_row_its_own_draw() -> None:
    q = torch.randn(20_000, 3, 4)
    epsilon = torch.tensor([[0.0], [0.4], [1.0]])
    distribution = EpsilonGreedy(q, epsilon)
    greedy = q.argmax(dim=-1, keepdim=True)
    # 1 - epsilon + epsilon / 4
    expected = torch.tensor([1.0, 0.7, 0.25])
    torch.testing.assert_close(distribution.probabilities.amax(-1)[0], expected)
    same = (distribution.sample() == greedy).float()
    torch.testing.assert_close(same.mean(dim=0).squeeze(-1), expected, atol=2e-2, rtol=0)
    # agents explore independently of each other
    both = EpsilonGreedy(q, 0.5).sample() == greedy
    p = 1 - 0.5 + 0.5 / 4
    joint = (both[:, 0] & both[:, 1]).float().mean()
    torch.testing.assert_close(joint, torch.tensor(p * p), atol=2e-2, rtol=0)


def test_without_epsilon_no_random_number_is_spent() -> None:
    q = torch.randn(5, 3)
    before = torch.get_rng_state()
    assert torch.equal(EpsilonGreedy(q).sample(), q.argmax(-1, keepdim=True))
    assert torch.equal(torch.get_rng_state(), before)
    EpsilonGreedy(q, 0.5).sample()
    assert not torch.equal(torch.get_rng_state(), before)


def test_a_row_that_allows_nothing_has_no_distribution() -> None:
    masks = torch.tensor([[False] * 3, [True, False, True]])
    for epsilon in (0.0, 0.3, 1.0):
        distribution = EpsilonGreedy(torch.randn(2, 3), epsilon, masks)
        for numbers in (distribution.probabilities, distribution.entropy(), distribution.log_prob(distribution.mode())):
            assert bool(numbers[0].isnan().all())
            assert not bool(numbers[1].isnan().any())
        assert bool((distribution.sample() < 3).all())


def test_masks_broadcast_over_what_values_share() -> None:
    masks = torch.rand(7, 2, 4) < 0.6
    masks[..., 0] = True
    q = torch.randn(1, 2, 4)
    distribution = EpsilonGreedy(q, torch.tensor([[0.2], [0.9]]), masks)
    expected = EpsilonGreedy(q.expand(7, 2, 4), torch.tensor([[0.2], [0.9]]), masks)
    assert distribution.sample().shape == (7, 2, 1)
    assert torch.equal(distribution.probabilities, expected.probabilities)
    for wide in (
        EpsilonGreedy(torch.randn(7, 2, 4), 0.5, masks[0]),
        EpsilonGreedy(torch.randn(7, 2, 4), 0.5, masks[:1]),
    ):
        assert bool(masks[0].expand(7, 2, 4).gather(-1, wide.sample()).all())


def test_bad_epsilons_and_masks() -> None:
    q = torch.randn(5, 3, 3)
    for number in (-0.1, 1.1, NAN):
        with pytest.raises(ValueError, match="epsilon: expected a probability, a number from 0 to 1, got"):
            EpsilonGreedy(q, number)
    for shape in ((3,), (3, 3), (2, 1), (1, 5, 3, 1), (4, 3, 1)):
        with pytest.raises(ValueError, match=r"epsilon: .*broadcasts to \[5, 3, 1\] for values \[5, 3, 3\], got \["):
            EpsilonGreedy(q, torch.rand(shape))
    for shape in ((), (1,), (3, 1), (5, 3, 1), (5, 1, 1)):
        assert EpsilonGreedy(q, torch.rand(shape, dtype=torch.float64)).entropy().dtype == torch.float32
    with pytest.raises(ValueError, match=r"action_masks: expected bool \[..., 3\]"):
        EpsilonGreedy(q, 0.1, torch.ones(5, 3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"action_masks: expected bool \[..., 3\]"):
        EpsilonGreedy(q, 0.1, torch.ones(5, 3, 3))


# ---- the mixin -------------------------------------------------------------------------------------------------------


class Values(QMixin, Model):
    def __init__(self, space: gymnasium.Space = DISCRETE, outputs: int = 4) -> None:
        Model.__init__(self, 3, space)
        QMixin.__init__(self)
        self.net = nn.Linear(3, outputs)

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return self.net(inputs["states"]), {"extra": 1}


def test_a_hand_written_network_acts_greedily_among_the_allowed() -> None:
    model, states = Values(), torch.randn(50, 3)
    q = model.net(states)
    actions, log_prob, outputs = model.act({"states": states}, "q")
    assert torch.equal(actions, q.argmax(-1, keepdim=True))
    assert torch.equal(outputs["mean_actions"], actions)
    assert torch.equal(log_prob, torch.zeros(50, 1))  # type: ignore[arg-type]
    assert outputs["extra"] == 1
    masks = torch.rand(50, 4) < 0.5
    masks[:, 2] = True
    actions, _, _ = model.act({"states": states, "action_masks": masks}, "q")
    assert torch.equal(actions, q.masked_fill(~masks, -INF).argmax(-1, keepdim=True))
    assert torch.equal(model.distribution("q").mean, q)
    explored = model.make_distribution([q], masks, 0.5).sample()
    assert bool(masks.gather(-1, explored).all())
    assert not torch.equal(explored, actions)
    assert model.settings() == ()


@pytest.mark.parametrize(
    "space", [spaces.MultiDiscrete([2, 3]), spaces.Box(-1.0, 1.0, (4,)), spaces.MultiBinary(4), spaces.Dict({})]
)
def test_other_spaces_are_pointed_to_the_wrapper(space: gymnasium.Space) -> None:
    with pytest.raises(TypeError, match=r"Values: .*Discrete action space, got .*coterie\.envs\.DiscreteActions"):
        Values(space)


def test_values_of_another_number_of_actions_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"Values.compute returned values \[2, 3\]: expected one for each of the 4 actions"
    ):
        Values(outputs=3).act({"states": torch.randn(2, 3)})


# ---- the ready-made network ------------------------------------------------------------------------------------------


def built(**kwargs: Any) -> QNetwork:
    model = QNetwork(OBSERVATION, DISCRETE, **kwargs)
    model.init_biases("normal_")
    return model


def test_the_network_by_hand() -> None:
    model = built(hidden=(8,))
    x = torch.randn(6, 3)
    first, head = (m for m in model.modules() if isinstance(m, nn.Linear))
    expected = (x @ first.weight.mT + first.bias).clamp_min(0.0) @ head.weight.mT + head.bias
    torch.testing.assert_close(model.compute({"states": x})[0], expected)
    assert model.output_layers() == [head]


@pytest.mark.parametrize("hidden", [(8,), (8, 6)])
def test_two_streams_by_hand(hidden: tuple[int, ...]) -> None:
    model = built(hidden=hidden, dueling=True)
    x = torch.randn(6, 3)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    # each stream has the last hidden layer to itself
    below, (value, value_head, advantage, advantage_head) = layers[:-4], layers[-4:]
    assert [layer.out_features for layer in layers] == [*hidden[:-1], hidden[-1], 1, hidden[-1], 4]
    features = x
    for layer in below:
        features = layer(features).relu()
    v, a = value_head(value(features).relu()), advantage_head(advantage(features).relu())
    q = model.compute({"states": x})[0]
    torch.testing.assert_close(q, v + a - a.sum(-1, keepdim=True) / 4)
    # so the mean of the action values is the state's value, whatever the advantages are
    torch.testing.assert_close(q.mean(-1, keepdim=True), v)
    assert model.output_layers() == [value_head, advantage_head]


def test_rescaling_the_output_layers_of_two_streams_rescales_the_values() -> None:
    model, x = built(dueling=True), torch.randn(6, 3)
    before = model.compute({"states": x})[0].detach()
    with torch.no_grad():
        for layer in model.output_layers():  # to 3 q + 5
            layer.weight.mul_(3.0)
            layer.bias.mul_(3.0).add_(5.0)
    torch.testing.assert_close(model.compute({"states": x})[0], 3.0 * before + 5.0, atol=1e-5, rtol=1e-5)


def test_two_streams_behind_a_memory() -> None:
    model = built(hidden=(8,), dueling=True, rnn="gru", rnn_size=5, sequence_length=7)
    assert recurrence_of(model) == Recurrence(((1, 5),), 7, True)
    assert [type(m).__name__ for m in model.children()] == ["Sequential", "GRU", "Perceptron", "Perceptron"]
    shapes = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    assert shapes == [(3, 8), (5, 5), (5, 1), (5, 5), (5, 4)]
    q, last = model.compute({"states": torch.randn(6, 3)})
    assert q.shape == (6, 4)
    assert [state.shape for state in last["rnn"]] == [(1, 6, 5)]


@pytest.mark.parametrize("options", [{}, {"dueling": True}, {"dueling": True, "rnn": "lstm", "rnn_size": 5}])
@pytest.mark.parametrize("ids", [0, 3])
def test_networks_are_stacked(ids: int, options: dict[str, Any]) -> None:
    models = [built(hidden=(8, 6), agent_ids=ids, **options) for _ in range(3)]
    storage = FlatParameters([[model] for model in models])
    batch = ModelBatch(models, "q", storage, torch.eye(3))
    assert batch.mode == "stacked"
    # 3 steps of 2 sequences
    states, starts = torch.randn(6, 3, 3), torch.zeros(6, 3, 1, dtype=torch.bool)
    starts[2, 1] = True
    state = torch.randn(2, 3, batch.state_width)
    q = batch.unroll(states, state, starts, None, 3)[0][0] if batch.recurrent else batch(states)[0]
    weights = torch.randn_like(q)
    storage.grad.zero_()
    (q * weights).sum().backward()
    stacked = storage.grad.clone()
    columns = []
    for a, model in enumerate(models):
        inputs: dict[str, Any] = {"states": states[:, a], "agent_id": torch.eye(3)[a].expand(6, -1)}
        if batch.recurrent:
            spec = recurrence_of(model)
            assert spec is not None
            inputs |= {"rnn": spec.unpack(state[:, a]), "length": 3, "starts": starts[:, a]}
        columns.append(model.compute(inputs, "q")[0])
    expected = torch.stack(columns, dim=1)
    torch.testing.assert_close(q, expected, atol=1e-6, rtol=1e-5)
    storage.grad.zero_()
    (expected * weights).sum().backward()
    torch.testing.assert_close(stacked, storage.grad, atol=1e-5, rtol=1e-5)
    assert bool(stacked.any())


def test_in_reduced_precision_values_are_nearly_the_same() -> None:
    model, x = built(dueling=True, hidden=(64, 64)), torch.randn(300, 3)
    expected = model.compute({"states": x})[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = model.compute({"states": x})[0]
    torch.testing.assert_close(q.float(), expected, atol=0.1, rtol=0.02)


def test_bad_networks() -> None:
    with pytest.raises(ValueError, match=r"dueling: expected at least one hidden layer.*got hidden \(\)"):
        QNetwork(OBSERVATION, DISCRETE, hidden=(), dueling=True)
    assert QNetwork(OBSERVATION, DISCRETE, hidden=(), dueling=True, rnn="gru").compute({"states": torch.zeros(1, 3)})
    with pytest.raises(TypeError, match=r"coterie\.envs\.DiscreteActions"):
        QNetwork(OBSERVATION, spaces.MultiDiscrete([2, 3]))

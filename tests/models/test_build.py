from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from coterie.models import (
    CategoricalPolicy,
    GaussianPolicy,
    Model,
    MultiCategoricalPolicy,
    TanhGaussianPolicy,
    Value,
    build_models,
    mlp,
)

BOX = spaces.Box(-1.0, 1.0, (2,))
FREE = spaces.Box(-np.inf, np.inf, (2,))


def team(
    observations: list[int] | None = None, actions: list[gymnasium.Space] | None = None, states: list[int] | None = None
) -> SimpleNamespace:
    """What ``build_models`` reads of an environment; three equal agents by default."""
    observations = observations or [4, 4, 4]
    names = [f"agent_{i}" for i in range(len(observations))]
    actions = actions or [spaces.Discrete(3)] * len(names)
    states = states or [10] * len(names)

    def boxes(sizes: list[int]) -> dict[str, gymnasium.Space]:
        return {uid: spaces.Box(-np.inf, np.inf, (n,)) for uid, n in zip(names, sizes, strict=True)}

    return SimpleNamespace(
        possible_agents=names,
        observation_spaces=boxes(observations),
        action_spaces=dict(zip(names, actions, strict=True)),
        shared_observation_spaces=boxes(states),
        device=torch.device("cpu"),
    )


def linears(model: Model) -> list[nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


def distinct(models: dict[str, dict[str, Model]], role: str) -> int:
    return len({id(roles[role]) for roles in models.values()})


@pytest.mark.parametrize(
    ("space", "kwargs", "kind", "outputs"),
    [
        (spaces.Discrete(3), {}, CategoricalPolicy, 3),
        (spaces.MultiDiscrete([2, 3]), {}, MultiCategoricalPolicy, 5),
        (BOX, {}, TanhGaussianPolicy, 2),
        (BOX, {"squash": False}, GaussianPolicy, 2),
        (FREE, {}, GaussianPolicy, 2),
        (BOX, {"state_dependent_std": True}, TanhGaussianPolicy, 4),
    ],
)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("algorithm", ["mappo", "ippo"])
def test_a_policy_for_every_space(
    space: gymnasium.Space, kwargs: dict[str, Any], kind: type[Model], outputs: int, shared: bool, algorithm: str
) -> None:
    env = team(actions=[space] * 3)
    models = build_models(env, algorithm, shared=shared, **kwargs)
    assert list(models) == env.possible_agents
    assert distinct(models, "policy") == distinct(models, "value") == (1 if shared else 3)
    policy, value = models["agent_1"]["policy"], models["agent_1"]["value"]
    assert type(policy) is kind
    assert type(value) is Value
    assert linears(policy)[-1].out_features == outputs
    assert value.num_observations == (10 if algorithm == "mappo" else 4)
    ids = torch.eye(3)[:1].expand(6, -1)
    inputs = {"states": torch.randn(6, 4), "agent_id": ids}
    actions, log_prob, _ = policy.act(inputs, "policy")
    assert log_prob is not None
    assert log_prob.shape == (6, 1)
    assert actions.shape == (6, 1 if isinstance(space, spaces.Discrete) else 2)
    assert all(space.contains(np.asarray(a, space.dtype).reshape(space.shape)) for a in actions.detach().numpy())
    assert value.act({"states": torch.randn(6, value.num_observations), "agent_id": ids}, "value")[0].shape == (6, 1)


@pytest.mark.parametrize(
    ("shared", "agent_id", "algorithm", "policy_inputs", "value_inputs"),
    [
        # shared models need an id; a critic of the shared state serves the whole team without
        (True, None, "mappo", 4 + 3, 10),
        (True, None, "ippo", 4 + 3, 4 + 3),
        (False, None, "mappo", 4, 10),
        (False, None, "ippo", 4, 4),
        (True, False, "ippo", 4, 4),
        (False, True, "ippo", 4 + 3, 4 + 3),
        (False, True, "mappo", 4 + 3, 10),
    ],
)
def test_agent_ids(shared: bool, agent_id: bool | None, algorithm: str, policy_inputs: int, value_inputs: int) -> None:
    models = build_models(team(), algorithm, shared=shared, agent_id=agent_id)
    policy, value = models["agent_0"]["policy"], models["agent_0"]["value"]
    assert linears(policy)[0].in_features == policy_inputs
    assert linears(value)[0].in_features == value_inputs
    assert policy.uses_agent_id == (policy_inputs > 4)
    assert value.uses_agent_id == (value_inputs == 7)
    # what the input's space is does not change: the id comes beside it
    assert policy.num_observations == 4


def test_a_lone_agent_needs_no_id() -> None:
    models = build_models(team([4]), "ippo")
    assert not models["agent_0"]["policy"].uses_agent_id


def test_an_agent_with_an_id_acts_differently() -> None:
    policy = build_models(team())["agent_0"]["policy"]
    states, ids = torch.randn(1, 4).expand(3, 4), torch.eye(3)
    logits = policy.compute({"states": states, "agent_id": ids})[0]
    assert not torch.allclose(logits[0], logits[1], atol=1e-6)


def test_a_missing_id_is_named() -> None:
    policy = build_models(team())["agent_0"]["policy"]
    with pytest.raises(KeyError, match="agent_id"):
        policy.act({"states": torch.zeros(1, 4)})


def test_unequal_agents_share_within_their_kind_and_one_critic_of_the_state() -> None:
    env = team([4, 6, 4], [spaces.Discrete(3), BOX, spaces.Discrete(3)])
    models = build_models(env, "mappo")
    assert models["agent_0"]["policy"] is models["agent_2"]["policy"]
    assert type(models["agent_1"]["policy"]) is TanhGaussianPolicy
    assert distinct(models, "value") == 1
    # agent_1 is alone of its kind
    assert not models["agent_1"]["policy"].uses_agent_id
    assert linears(models["agent_0"]["policy"])[0].in_features == 4 + 3
    assert distinct(build_models(env, "mappo", shared=False), "value") == 3
    own = build_models(env, "ippo")
    assert distinct(own, "value") == 2
    assert own["agent_1"]["value"].num_observations == 6


def test_different_states_need_different_critics() -> None:
    models = build_models(team(states=[10, 10, 12]))
    assert models["agent_0"]["value"] is models["agent_1"]["value"]
    assert models["agent_2"]["value"].num_observations == 12
    assert distinct(models, "policy") == 2


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "gelu", "silu", "leaky_relu"])
def test_weights_are_orthogonal_with_the_gain_of_their_layer(activation: str) -> None:
    models = build_models(team(), shared=False, hidden=(8, 6), activation=activation)
    for role, head_gain in (("policy", 0.01), ("value", 1.0)):
        layers = linears(models["agent_0"][role])
        assert len(layers) == 3
        for layer, gain in zip(layers, (math.sqrt(2), math.sqrt(2), head_gain), strict=True):
            rows, columns = layer.weight.shape
            gram = layer.weight @ layer.weight.mT if rows <= columns else layer.weight.mT @ layer.weight
            # W W^T = gain^2 I
            torch.testing.assert_close(gram, gain**2 * torch.eye(min(rows, columns)), atol=1e-5, rtol=1e-4)
            assert torch.equal(layer.bias, torch.zeros(rows))


def test_widths_and_activations_are_those_asked_for() -> None:
    models = build_models(team(), shared=False, hidden=(8,), value_hidden=(5, 7), activation="elu")
    policy, value = models["agent_0"]["policy"], models["agent_0"]["value"]
    assert [layer.out_features for layer in linears(policy)] == [8, 3]
    assert [layer.out_features for layer in linears(value)] == [5, 7, 1]
    assert sum(isinstance(m, nn.ELU) for m in value.modules()) == 2


def test_distinct_models_start_differently() -> None:
    models = build_models(team(), shared=False)
    first, second = (linears(models[uid]["policy"])[0].weight for uid in ("agent_0", "agent_1"))
    assert not torch.allclose(first, second)


def test_first_policies_are_nearly_uniform() -> None:
    policy = build_models(team(), shared=False)["agent_0"]["policy"]
    logits = policy.compute({"states": torch.randn(50, 4)})[0]
    assert bool((logits.abs() < 0.1).all())


@pytest.mark.parametrize("dependent", [False, True])
def test_initial_spread(dependent: bool) -> None:
    env = team(actions=[FREE] * 3)
    models = build_models(env, shared=False, initial_log_std=-1.5, state_dependent_std=dependent)
    _, log_std, _ = models["agent_0"]["policy"].compute({"states": torch.zeros(4, 4)})
    torch.testing.assert_close(log_std.expand(4, 2), torch.full((4, 2), -1.5))


def test_a_spread_of_the_state_depends_on_the_state() -> None:
    policy = build_models(team(actions=[FREE] * 3), shared=False, state_dependent_std=True)["agent_0"]["policy"]
    _, log_std, _ = policy.compute({"states": torch.randn(2, 4)})
    assert not torch.equal(log_std[0], log_std[1])


def test_ready_made_gaussians_clip_to_the_bounds() -> None:
    policy = build_models(team(actions=[BOX] * 3), shared=False, squash=False, initial_log_std=2.0)["agent_0"]["policy"]
    actions = policy.act({"states": torch.randn(200, 4)})[0]
    assert float(actions.detach().abs().max()) == 1.0


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['ippo', 'mappo'\], got 'qmix'"):
        build_models(team(), "qmix")
    with pytest.raises(ValueError, match=r"activation.*'swish'"):
        build_models(team(), activation="swish")
    with pytest.raises(ValueError, match="at least one unit"):
        build_models(team(), hidden=(8, 0))
    with pytest.raises(TypeError, match="MultiBinary"):
        build_models(team(actions=[spaces.MultiBinary(3)] * 3))


def test_a_perceptron_without_hidden_layers_is_linear() -> None:
    net = mlp(3, 2, hidden=())
    assert [type(m) for m in net] == [nn.Linear]

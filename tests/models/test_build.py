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
    AttentionMixer,
    BernoulliPolicy,
    CategoricalPolicy,
    GaussianPolicy,
    Model,
    MultiCategoricalPolicy,
    QMIXMixer,
    QNetwork,
    TanhGaussianPolicy,
    TeamValue,
    Value,
    build_models,
    mlp,
)
from coterie.models.sequences import Recurrence, recurrence_of

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


class Bare:
    """An environment of another library."""

    possible_agents = ("agent_0",)
    observation_spaces = action_spaces = {"agent_0": BOX}  # noqa: RUF012 (never changed)


def test_an_environment_that_was_not_wrapped_is_refused() -> None:
    bare: Any = Bare()
    with pytest.raises(
        TypeError, match=r"got Bare without \['shared_observation_spaces', 'device'\]; coterie.wrap_env"
    ):
        build_models(bare)
    with pytest.raises(TypeError, match=r"got Bare without \['shared_observation_spaces'\]; coterie.wrap_env"):
        build_models(bare, device="cpu")


def linears(model: Model) -> list[nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


def distinct(models: dict[str, dict[str, Model]], role: str) -> int:
    return len({id(roles[role]) for roles in models.values()})


@pytest.mark.parametrize(
    ("space", "kwargs", "kind", "outputs"),
    [
        (spaces.Discrete(3), {}, CategoricalPolicy, 3),
        (spaces.MultiDiscrete([2, 3]), {}, MultiCategoricalPolicy, 5),
        (spaces.MultiBinary(2), {}, BernoulliPolicy, 2),
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
    with pytest.raises(ValueError, match=r"\['ippo', 'iql', 'mappo', 'qmix', 'vdn'\], got 'coma'"):
        build_models(team(), "coma")
    with pytest.raises(ValueError, match=r"activation.*'swish'"):
        build_models(team(), activation="swish")
    with pytest.raises(ValueError, match="at least one unit"):
        build_models(team(), hidden=(8, 0))
    with pytest.raises(TypeError, match=r"no ready-made policy for the action space Dict.*MultiBinary or Box"):
        build_models(team(actions=[spaces.Dict({"a": BOX})] * 3))


# ---- memory, structure, and critics of other kinds -------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("algorithm", ["mappo", "ippo"])
def test_policies_and_critics_with_a_memory(algorithm: str, shared: bool) -> None:
    models = build_models(
        team(), algorithm, shared, hidden=(8,), rnn="lstm", rnn_size=5, rnn_layers=2, sequence_length=7
    )
    for model in models["agent_1"].values():
        assert recurrence_of(model) == Recurrence(((2, 5), (2, 5)), 7, True)
    assert recurrence_of(build_models(team(), algorithm, shared)["agent_0"]["policy"]) is None


def test_images_go_through_convolutions() -> None:
    env = team()
    env.observation_spaces = dict.fromkeys(env.possible_agents, spaces.Box(0, 255, (4, 4, 3), np.uint8))
    env.shared_observation_spaces = dict.fromkeys(env.possible_agents, spaces.Box(0, 255, (6, 6), np.uint8))
    models = build_models(env, cnn=(4,))["agent_0"]
    for model in models.values():
        assert [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)] == [4]
    assert models["value"].act({"states": torch.rand(2, 36)})[0].shape == (2, 1)
    assert not [m for m in build_models(env, cnn=())["agent_0"]["policy"].modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize("critic", ["pooled", "attention"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_critic_of_the_team_is_one_for_everybody(critic: str, shared: bool) -> None:
    env = team([4, 6, 4], [spaces.Discrete(3), BOX, spaces.Discrete(3)])
    models = build_models(env, shared=shared, critic=critic, value_hidden=(12,), rnn="gru")
    assert distinct(models, "value") == 1
    assert distinct(models, "policy") == (2 if shared else 3)
    value = models["agent_0"]["value"]
    assert type(value) is TeamValue
    assert value.pooling == ("mean" if critic == "pooled" else "attention")
    assert value.num_observations == 4 + 6 + 4
    assert value.act({"states": torch.randn(5, 14)})[0].shape == (5, 3)


@pytest.mark.parametrize(
    ("critic_input", "sizes", "shared_critics", "distinct_critics", "ids"),
    [
        # observations of 4, 6 and 4, a state of 10
        (None, (10, 10, 10), 1, 3, False),
        ("state", (10, 10, 10), 1, 3, False),
        ("observations", (14, 14, 14), 1, 3, False),
        ("both", (24, 24, 24), 1, 3, False),
        ("agent", (14, 16, 14), 2, 3, True),
    ],
)
def test_what_critics_see(
    critic_input: str | None, sizes: tuple[int, ...], shared_critics: int, distinct_critics: int, ids: bool
) -> None:
    env = team([4, 6, 4])
    models = build_models(env, critic_input=critic_input)
    assert tuple(roles["value"].num_observations for roles in models.values()) == sizes
    assert distinct(models, "value") == shared_critics
    assert models["agent_0"]["value"].uses_agent_id == ids
    assert not models["agent_1"]["value"].uses_agent_id
    assert distinct(build_models(env, critic_input=critic_input, shared=False), "value") == distinct_critics


def test_critics_and_inputs_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"critic: expected one of \['mlp', 'heads', 'pooled', 'attention'\], got 'deep'"
    ):
        build_models(team(), critic="deep")
    with pytest.raises(ValueError, match=r"critic_input: expected one of \['state', .*got 'all'"):
        build_models(team(), critic_input="all")
    with pytest.raises(ValueError, match="'pooled' sees 'observations', not 'state': leave critic_input out"):
        build_models(team(), critic="pooled", critic_input="state")
    for options in ({"critic": "attention"}, {"critic_input": "agent"}):
        with pytest.raises(ValueError, match=r"critics of 'ippo' see their agent's observation alone.*\['mappo'\]"):
            build_models(team(), "ippo", **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rnn: expected one of"):
        build_models(team(), rnn="elman")


def test_a_perceptron_without_hidden_layers_is_linear() -> None:
    net = mlp(3, 2, hidden=())
    assert [type(m) for m in net] == [nn.Linear]


# ---- action values and mixers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("algorithm", ["qmix", "vdn", "iql"])
def test_action_values_for_everybody(algorithm: str, shared: bool) -> None:
    env = team()
    models = build_models(env, algorithm, shared=shared)
    assert list(models) == env.possible_agents
    assert all(set(own) == ({"q", "mixer"} if algorithm == "qmix" else {"q"}) for own in models.values())
    assert distinct(models, "q") == (1 if shared else 3)
    q_network = models["agent_1"]["q"]
    assert type(q_network) is QNetwork
    assert [layer.out_features for layer in linears(q_network)] == [64, 64, 3]
    assert linears(q_network)[0].in_features == (4 + 3 if shared else 4)
    assert q_network.uses_agent_id == shared
    assert sum(isinstance(m, nn.ReLU) for m in q_network.modules()) == 2
    ids = torch.eye(3)[:1].expand(6, -1)
    assert q_network.compute({"states": torch.randn(6, 4), "agent_id": ids})[0].shape == (6, 3)
    head = linears(q_network)[-1].weight
    torch.testing.assert_close(head @ head.mT, torch.eye(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "kind", "size"),
    [
        ({}, QMIXMixer, 10),
        ({"mixer_input": "state"}, QMIXMixer, 10),
        ({"mixer": "attention", "mixer_input": "observations"}, AttentionMixer, 4 + 6 + 4),
        ({"mixer": "qmix", "mixer_input": "both", "shared": False}, QMIXMixer, 10 + 14),
    ],
)
def test_one_mixer_for_the_team(options: dict[str, Any], kind: type[Model], size: int) -> None:
    models = build_models(team([4, 6, 4]), "qmix", mixer_embed=7, **options)
    assert distinct(models, "mixer") == 1
    assert distinct(models, "q") == (3 if options.get("shared") is False else 2)
    mixer = models["agent_0"]["mixer"]
    assert type(mixer) is kind
    assert (mixer.num_observations, mixer.agents, mixer.embed) == (size, 3, 7)  # type: ignore[attr-defined]
    assert mixer.act({"q_values": torch.randn(5, 3), "states": torch.randn(5, size)})[0].shape == (5, 1)


def test_mixers_take_images_and_the_device() -> None:
    env = team()
    env.shared_observation_spaces = dict.fromkeys(env.possible_agents, spaces.Box(0, 255, (6, 6), np.uint8))
    mixer = build_models(env, "qmix", device="meta")["agent_0"]["mixer"]
    assert [m.out_channels for m in mixer.modules() if isinstance(m, nn.Conv2d)] == [16, 32, 32]
    assert all(p.device.type == "meta" for p in mixer.parameters())


def test_options_of_action_values() -> None:
    options: dict[str, Any] = {"hidden": (8,), "rnn": "lstm", "rnn_size": 5, "rnn_layers": 2, "sequence_length": 7}
    q_network = build_models(team(), "vdn", activation="elu", dueling=True, agent_id=False, **options)["agent_2"]["q"]
    assert recurrence_of(q_network) == Recurrence(((2, 5), (2, 5)), 7, True)
    assert [(layer.in_features, layer.out_features) for layer in linears(q_network)] == [
        (4, 8), (5, 5), (5, 1), (5, 5), (5, 3)
    ]  # fmt: skip
    assert sum(isinstance(m, nn.ELU) for m in q_network.modules()) == 3
    assert not q_network.uses_agent_id


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("qmix", {"value_hidden": (8,)}),
        ("vdn", {"squash": False}),
        ("iql", {"initial_log_std": -1.0}),
        ("qmix", {"state_dependent_std": True}),
        ("vdn", {"critic": "attention"}),
        ("iql", {"critic_input": "state"}),
        ("mappo", {"dueling": True}),
        ("mappo", {"mixer": "qmix"}),
        ("ippo", {"mixer_input": "state"}),
        ("vdn", {"mixer": "qmix"}),
        ("iql", {"mixer_embed": 8}),
    ],
)
def test_arguments_without_a_use_are_refused(algorithm: str, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=rf"{name}: models of '{algorithm}' have no use for it: leave out {name}="):
        build_models(team(), algorithm, **options)


def test_bad_mixers_and_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mixer: expected one of \['qmix', 'attention'\], got 'sum'"):
        build_models(team(), "qmix", mixer="sum")
    for wrong in ("agent", ""):
        with pytest.raises(
            ValueError, match=rf"mixer_input: expected one of \['state', 'observations', 'both'\], got '{wrong}'"
        ):
            build_models(team(), "qmix", mixer_input=wrong)
    unequal = team(states=[10, 10, 12])
    for sees in (None, "both"):
        with pytest.raises(ValueError, match=r"'agent_0' and 'agent_2' differ .*use mixer_input='observations'"):
            build_models(unequal, "qmix", mixer_input=sees)
    assert build_models(unequal, "qmix", mixer_input="observations")["agent_0"]["mixer"].num_observations == 12
    with pytest.raises(TypeError, match=r"got Box.*coterie\.envs\.DiscreteActions"):
        build_models(team(actions=[BOX] * 3), "iql")
    with pytest.raises(ValueError, match=r"activation: expected one of .*got ''"):
        build_models(team(), "iql", activation="")

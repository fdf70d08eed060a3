from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from coterie.agents import IPPO, MAPPO, MultiAgent
from coterie.agents.groups import Learner, TeamMember, build_learners
from coterie.memories import RandomMemory
from coterie.models import (
    BernoulliPolicy,
    CategoricalPolicy,
    GaussianMixin,
    GaussianPolicy,
    Model,
    MultiCategoricalPolicy,
    TanhGaussianPolicy,
    Value,
)
from coterie.preprocessors import RunningStandardScaler, ValueNorm
from coterie.schedulers import KLAdaptiveLR

BOX = spaces.Box(-1.0, 1.0, (2,))
CHOICE = spaces.Discrete(3)
OFF: Any = {"write_interval": 0, "checkpoint_interval": 0}


def observation(size: int = 4) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (size,))


def policy(size: int = 4, action: gymnasium.Space = CHOICE, **kwargs: Any) -> Model:
    kind: type[Model] = CategoricalPolicy if isinstance(action, spaces.Discrete) else TanhGaussianPolicy
    return kind(observation(size), action, hidden=(8,), **kwargs)


def critic(size: int = 10) -> Model:
    return Value(observation(size), CHOICE, hidden=(8,))


def members(
    models: Sequence[Mapping[str, Model]], own: Sequence[Any] | None = None, common: Sequence[Any] | None = None
) -> list[TeamMember]:
    """Agents a, b, c... whose spaces follow from their policies."""
    return [
        TeamMember(
            name="abcdefgh"[i],
            index=i,
            models=roles,
            observation_space=roles["policy"].observation_space,  # type: ignore[arg-type]
            action_space=roles["policy"].action_space,  # type: ignore[arg-type]
            state_space=observation(10),
            own={"rate": None if own is None else own[i]},
            common={"epochs": None if common is None else common[i]},
        )
        for i, roles in enumerate(models)
    ]


def learners(models: Sequence[Mapping[str, Model]], **kwargs: Any) -> list[Learner]:
    return build_learners(members(models, **kwargs), torch.device("cpu"))


def shape(found: Sequence[Learner]) -> list[tuple[list[str], list[list[str]]]]:
    """Names by group, and names by parameter set, of each learner."""
    return [(["".join(g.names) for g in x.groups], x.set_names()) for x in found]


def modes(learner: Learner) -> list[tuple[str, str | None]]:
    return [(g.policy.mode, None if g.value is None else g.value.mode) for g in learner.groups]


def test_one_model_for_all_is_one_set() -> None:
    roles = {"policy": policy(), "value": critic()}
    (learner,) = learners([roles] * 3)
    assert shape([learner]) == [(["abc"], [["a", "b", "c"]])]
    assert (learner.num_sets, learner.agents_per_set) == (1, 3)
    assert modes(learner) == [("single", "single")]
    assert learner.policy_width == sum(p.numel() for p in roles["policy"].parameters())
    assert learner.storage.data.shape == (1, sum(p.numel() for m in roles.values() for p in m.parameters()))


def test_distinct_models_are_sets_of_one_learner() -> None:
    (learner,) = learners([{"policy": policy(), "value": critic()} for _ in range(3)])
    assert shape([learner]) == [(["abc"], [["a"], ["b"], ["c"]])]
    assert (learner.num_sets, learner.agents_per_set) == (3, 1)
    assert learner.groups[0].sets == [0, 1, 2]
    assert modes(learner) == [("stacked", "stacked")]


def test_pairs_that_share_are_sets_of_one_learner() -> None:
    x, y = ({"policy": policy(), "value": critic()} for _ in range(2))
    (learner,) = learners([x, y, x, y])
    assert shape([learner]) == [(["acbd"], [["a", "c"], ["b", "d"]])]
    assert (learner.num_sets, learner.agents_per_set) == (2, 2)
    assert learner.groups[0].sets == [0, 0, 1, 1]
    assert modes(learner) == [("stacked", "stacked")]


def test_sets_of_unequal_size_are_learners_of_their_own() -> None:
    x, y = ({"policy": policy(), "value": critic()} for _ in range(2))
    found = learners([x, x, y])
    assert shape(found) == [(["ab"], [["a", "b"]]), (["c"], [["c"]])]


def test_a_shared_critic_joins_distinct_policies() -> None:
    value = critic()
    (learner,) = learners([{"policy": policy(), "value": value} for _ in range(3)])
    assert shape([learner]) == [(["abc"], [["a", "b", "c"]])]
    assert modes(learner) == [("stacked", "single")]


def test_a_shared_policy_joins_distinct_critics() -> None:
    shared = policy()
    (learner,) = learners([{"policy": shared, "value": critic()} for _ in range(3)])
    assert shape([learner]) == [(["abc"], [["a", "b", "c"]])]
    assert modes(learner) == [("single", "stacked")]


def test_a_chain_of_shared_models_is_one_set() -> None:
    first, second, third = critic(), critic(), policy()
    # a and b share a critic, c and d another, b and c a policy
    found = learners(
        [
            {"policy": policy(), "value": first},
            {"policy": third, "value": first},
            {"policy": third, "value": second},
            {"policy": policy(), "value": second},
        ]
    )
    (learner,) = found
    assert learner.set_names() == [["a", "b", "c", "d"]]
    assert learner.num_sets == 1


def test_models_that_share_a_layer_are_one_set() -> None:
    x, y = policy(), policy()
    y.net[0] = x.net[0]
    (learner,) = learners([{"policy": x}, {"policy": y}])
    assert learner.set_names() == [["a", "b"]]
    assert modes(learner) == [("loop", None)]


def test_unequal_spaces_are_groups_of_their_own() -> None:
    found = learners(
        [
            {"policy": policy(4), "value": critic()},
            {"policy": policy(6), "value": critic()},
            {"policy": policy(4), "value": critic()},
            {"policy": policy(4, BOX), "value": critic()},
        ]
    )
    assert shape(found) == [(["ac"], [["a"], ["c"]]), (["b"], [["b"]]), (["d"], [["d"]])]


def test_bounds_of_the_actions_tell_spaces_apart() -> None:
    wide = spaces.Box(-2.0, 2.0, (2,))
    found = learners([{"policy": policy(4, BOX)}, {"policy": policy(4, wide)}])
    assert shape(found) == [(["a"], [["a"]]), (["b"], [["b"]])]


def test_a_shared_critic_over_unequal_agents_is_one_set_of_several_groups() -> None:
    value = critic()
    found = learners(
        [
            {"policy": policy(4), "value": value},
            {"policy": policy(6), "value": value},
            {"policy": policy(4), "value": value},
        ]
    )
    assert shape(found) == [(["ac", "b"], [["a", "c", "b"]])]
    (learner,) = found
    assert (learner.num_sets, learner.agents_per_set) == (1, 3)
    assert modes(learner) == [("stacked", "single"), ("single", "single")]


def test_other_architectures_are_learners_of_their_own() -> None:
    def other(activation: str, hidden: tuple[int, ...] = (8,)) -> Model:
        return CategoricalPolicy(observation(), CHOICE, hidden=hidden, activation=activation)

    found = learners([{"policy": other("tanh", (16,))}, {"policy": other("tanh")}, {"policy": other("tanh")}])
    assert shape(found) == [(["a"], [["a"]]), (["bc"], [["b"], ["c"]])]
    # equal shapes but another activation: one learner, whose models run one after another
    (learner,) = learners([{"policy": other("tanh")}, {"policy": other("relu")}])
    assert modes(learner) == [("loop", None)]


def test_settings_of_the_loop_tell_learners_apart() -> None:
    models = [{"policy": policy(), "value": critic()} for _ in range(3)]
    found = learners(models, common=[("learning_epochs", 4), ("learning_epochs", 8), ("learning_epochs", 4)])
    assert shape(found) == [(["ac"], [["a"], ["c"]]), (["b"], [["b"]])]


def test_settings_of_the_parameters_do_not() -> None:
    models = [{"policy": policy(), "value": critic()} for _ in range(2)]
    assert shape(learners(models, own=[1e-3, 1e-4])) == [(["ab"], [["a"], ["b"]])]


@pytest.mark.parametrize("kind", ["own", "common"])
def test_agents_that_share_a_model_must_agree(kind: str) -> None:
    value = critic()
    models = [{"policy": policy(), "value": critic()}, *({"policy": policy(), "value": value} for _ in range(2))]
    key = {"own": "rate", "common": "epochs"}[kind]
    message = rf"agents 'b' and 'c' share a model but not the settings of its training: {key} is x for 'b' and y for 'c'\. Give"
    with pytest.raises(ValueError, match=message):
        learners(models, **{kind: ["z", "x", "y"]})


def test_agents_without_critics_can_act() -> None:
    (learner,) = learners([{"policy": policy()} for _ in range(2)])
    assert learner.groups[0].value is None
    assert learner.policy_width == learner.storage.data.shape[1]


def test_one_object_in_both_roles_counts_once() -> None:
    class Both(GaussianMixin, Model):
        def __init__(self) -> None:
            Model.__init__(self, observation(), BOX)
            GaussianMixin.__init__(self)
            self.net, self.head = nn.Linear(4, 2), nn.Linear(4, 1)
            self.log_std_parameter = nn.Parameter(torch.zeros(2))

        def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
            if role == "policy":
                return self.net(inputs["states"]), self.log_std_parameter, {}
            return self.head(inputs["states"]), {}

    models = [Both() for _ in range(2)]
    (learner,) = learners([{"policy": m, "value": m} for m in models])
    assert learner.storage.data.shape == (2, 10 + 5 + 2)
    assert modes(learner) == [("stacked", "stacked")]


def test_agent_ids_are_those_of_the_team() -> None:
    x, y = policy(agent_ids=4), policy(6, agent_ids=4)
    found = learners([{"policy": x}, {"policy": y}, {"policy": x}, {"policy": y}])
    assert shape(found) == [(["ac"], [["a", "c"]]), (["bd"], [["b", "d"]])]
    states = torch.randn(5, 2, 6)
    (logits,) = found[1].groups[0].policy(states)
    for i, index in enumerate((1, 3)):
        own = {"states": states[:, i], "agent_id": torch.eye(4)[index].expand(5, -1)}
        torch.testing.assert_close(logits[:, i], y.compute(own)[0])


# ---- distributions within one set -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["settings", "kind"])
def test_policies_of_one_set_with_other_distributions_keep_them(case: str) -> None:
    """A shared critic joins them; each must still act by its own distribution."""
    value = critic(4)
    policies: list[Model] = [GaussianPolicy(observation(), BOX, hidden=(8,), initial_log_std=1.0) for _ in range(2)]
    if case == "settings":
        GaussianMixin.__init__(policies[1], clip_actions=True, max_log_std=-3.0)  # type: ignore[arg-type]
    else:
        policies[1] = TanhGaussianPolicy(observation(), BOX, hidden=(8,), initial_log_std=1.0)
    agent = IPPO(["a", "b"], {n: {"policy": p, "value": value} for n, p in zip("ab", policies, strict=True)})
    states = {uid: torch.randn(2000, 4) for uid in "ab"}
    actions, log_prob, _ = agent.act(states, 0, 1)
    if case == "settings":
        assert 0.03 < float(actions["b"].std()) < 0.08  # exp(-3) = 0.05
    else:
        at_the_bounds = {uid: float((actions[uid].abs() == 1.0).float().mean()) for uid in "ab"}
        assert at_the_bounds["a"] > 0.5  # clipped
        assert at_the_bounds["b"] < 0.05  # squashed
    inputs = {"states": states["b"]}
    policies[1].act(inputs, "policy")
    own = policies[1].distribution("policy")  # type: ignore[operator]
    if case == "settings":
        inside = (actions["b"].abs() < 1).all(-1)
        torch.testing.assert_close(log_prob["b"][inside], own.log_prob(actions["b"])[inside], atol=1e-4, rtol=1e-4)


# ---- bounds and choices of actions ----------------------------------------------------------------------------------


def spread(low: Any, high: Any) -> spaces.Box:
    return spaces.Box(np.array(low, dtype=np.float32), np.array(high, dtype=np.float32))


@pytest.mark.parametrize("kind", [TanhGaussianPolicy, GaussianPolicy])
@pytest.mark.parametrize(
    ("built", "theirs"),
    [
        (spread([-1, -1], [1, 1]), spread([-2, -2], [2, 2])),
        (spread([-1, -1], [1, 1]), spread([-1, -1], [1, 2])),
        (spread([-1, -1], [1, 1]), spread([-1, 0], [1, 1])),
        (spread([0, 0], [1, 1]), spread([-1, -1], [1, 1])),
    ],
    ids=["both", "one above", "one below", "below"],
)
def test_a_policy_of_other_bounds_is_refused(kind: type[Model], built: spaces.Box, theirs: spaces.Box) -> None:
    models = {uid: {"policy": kind(observation(), built, hidden=(8,))} for uid in "ab"}
    with pytest.raises(
        ValueError, match=r"policy of 'b' was built for the actions Box.*its agent has Box.*: build it for"
    ):
        IPPO(["a", "b"], models, action_spaces={"a": built, "b": theirs})
    IPPO(["a", "b"], models, action_spaces={"a": built, "b": spread(built.low, built.high)})


def test_bounds_of_another_shape_but_equal_numbers_fit() -> None:
    models = {"a": {"policy": TanhGaussianPolicy(observation(), BOX, hidden=(8,))}}
    IPPO(["a"], models, action_spaces={"a": spaces.Box(-1.0, 1.0, (2, 1))})


@pytest.mark.parametrize("free", ["built", "theirs", "sizes"])
def test_bounds_that_nobody_claims_are_those_of_the_other(free: str) -> None:
    """Unbounded policies leave it to the environment, bounded ones may stay within a part of an unbounded space."""
    nothing = spaces.Box(-np.inf, np.inf, (2,))
    built: Any = {"built": nothing, "theirs": BOX, "sizes": 2}[free]
    models = {"a": {"policy": GaussianPolicy(observation(), built, hidden=(8,))}}
    IPPO(["a"], models, action_spaces={"a": nothing if free == "theirs" else BOX})


@pytest.mark.parametrize(
    ("built", "theirs"),
    [
        (spaces.Discrete(5), spaces.MultiDiscrete([2, 3])),
        (spaces.Discrete(5), spaces.Box(-1.0, 1.0, (5,))),
        (spaces.Discrete(5), spaces.MultiBinary(5)),
        (spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([3, 2])),
        (spaces.MultiBinary(5), spaces.Discrete(5)),
        (spaces.Box(-1.0, 1.0, (5,)), spaces.MultiBinary(5)),
    ],
    ids=str,
)
def test_a_policy_for_other_choices_of_the_same_number_is_refused(built: Any, theirs: Any) -> None:
    kinds: dict[type, type[Model]] = {
        spaces.Discrete: CategoricalPolicy,
        spaces.MultiDiscrete: MultiCategoricalPolicy,
        spaces.MultiBinary: BernoulliPolicy,
        spaces.Box: GaussianPolicy,
    }
    models = {"a": {"policy": kinds[type(built)](observation(), built, hidden=(8,))}}
    with pytest.raises(
        ValueError, match=r"policy of 'a' was built for the actions .* its agent has .*: build it for the"
    ):
        IPPO(["a"], models, action_spaces={"a": theirs})
    IPPO(["a"], models, action_spaces={"a": built})


# ---- from a configuration -------------------------------------------------------------------------------------------


def agent_of(models: list[dict[str, Model]], cfg: dict[str, Any], algorithm: type[MultiAgent] = MAPPO) -> MultiAgent:
    names = list("abcdefgh"[: len(models)])
    memories = {uid: RandomMemory(4, 2) for uid in names}
    cfg = {"rollouts": 4, "experiment": OFF, **cfg}
    return algorithm(names, dict(zip(names, models, strict=True)), memories, cfg=cfg)


def test_agents_with_other_epochs_learn_by_themselves() -> None:
    models = [{"policy": policy(), "value": critic()} for _ in range(3)]
    agent = agent_of(models, {"learning_epochs": {"a": 2, "b": 3, "c": 2}, "learning_rate": {"a": 1, "b": 2, "c": 3}})
    assert shape(agent.learners) == [(["ac"], [["a"], ["c"]]), (["b"], [["b"]])]
    rates = [x.optimizers.learning_rates() for x in agent.learners if x.optimizers is not None]
    assert rates == [[1.0, 3.0], [2.0]]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("learning_rate", (1e-3, 1e-4)),
        ("learning_rate", (1e-3, (1e-3, 1e-3))),
        ("grad_norm_clip", (0.5, 0.0)),
        ("kl_threshold", (0, 0.1)),
        ("learning_epochs", (2, 3)),
        ("mini_batches", (1, 2)),
        ("random_timesteps", (0, 1)),
        ("learning_starts", (0, 1)),
        ("mixed_precision", (False, True)),
        ("learning_rate_scheduler_kwargs", ({}, {"kl_threshold": 1})),
        ("value_preprocessor_kwargs", ({}, {"beta": 0.5})),
        ("state_preprocessor_kwargs", ({}, {"epsilon": 0.5})),
    ],
)
def test_a_conflict_within_a_shared_set_names_both_agents(name: str, values: tuple[Any, Any]) -> None:
    roles = {"policy": policy(), "value": critic()}
    kinds: dict[str, Any] = {
        "learning_rate_scheduler_kwargs": KLAdaptiveLR,
        "value_preprocessor_kwargs": ValueNorm,
        "state_preprocessor_kwargs": RunningStandardScaler,
    }
    kind = {name.removesuffix("_kwargs"): kinds[name]} if name in kinds else {}
    with pytest.raises(ValueError, match=r"agents 'a' and 'b' share a model but not ") as error:
        agent_of([roles, roles], {**kind, name: dict(zip("ab", values, strict=True))})
    if name != "state_preprocessor_kwargs":  # which is no setting of the optimizer's
        ours = f"{name} is {values[0]!r} for 'a' and {values[1]!r} for 'b'. Give"
        assert ours in str(error.value)
        assert str(error.value).count(" for 'a' and ") == 1  # and nothing that is equal


@pytest.mark.parametrize(
    ("name", "values"),
    [("ratio_clip", (0.1, 0.3)), ("entropy_loss_scale", (0.0, 0.1)), ("discount_factor", (0.9, 0.99))],
)
def test_agents_that_share_may_differ_in_their_losses(name: str, values: tuple[Any, Any]) -> None:
    roles = {"policy": policy(), "value": critic()}
    agent = agent_of([roles, roles], {name: dict(zip("ab", values, strict=True))})
    assert shape(agent.learners) == [(["ab"], [["a", "b"]])]


def test_a_conflict_shows_what_differs_and_nothing_else() -> None:
    roles = {"policy": policy(), "value": critic()}
    cfg = {"learning_rate": {"a": 1e-3, "b": (1e-3, 1e-4)}, "mini_batches": {"a": 1, "b": 2}, "grad_norm_clip": 3.0}
    with pytest.raises(ValueError, match=r"^agents 'a' and 'b' share") as error:
        agent_of([roles, roles], cfg)
    assert str(error.value) == (
        "agents 'a' and 'b' share a model but not the settings of its training: learning_rate is 0.001 for 'a' and "
        "(0.001, 0.0001) for 'b'; mini_batches is 1 for 'a' and 2 for 'b'. Give them equal values, or models of their own"
    )


def test_a_pair_of_rates_for_one_agent_alone() -> None:
    models = [{"policy": policy(), "value": critic()} for _ in range(2)]
    agent = agent_of(models, {"learning_rate": {"a": 1e-3, "b": (1e-3, 1e-4)}})
    assert shape(agent.learners) == [(["ab"], [["a"], ["b"]])]

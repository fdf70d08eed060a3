"""Made-up teams and their models, for comparing the library with the slow reference."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from coterie.models import build_models
from coterie.models.base import Model
from coterie.models.mixins import CategoricalMixin, DeterministicMixin, GaussianMixin

E = 3  # environments
Models = dict[str, dict[str, Model]]

# ---- teams -------------------------------------------------------------------------------------------------------------


def box(size: int, bound: float = np.inf) -> spaces.Box:
    return spaces.Box(-bound, bound, (size,), np.float32)


ACTIONS: dict[str, gymnasium.Space] = {
    "discrete": spaces.Discrete(3),
    "multidiscrete": spaces.MultiDiscrete([3, 2]),
    "multibinary": spaces.MultiBinary(2),
    "gaussian": box(2),
    "clipped": box(1, 1.5),
    "bounded": spaces.Box(np.array([-1.0, 0.5], np.float32), np.array([2.0, 1.5], np.float32)),
}
STATE = box(5)
OBSERVATION = {"discrete": 4, "multidiscrete": 4, "multibinary": 4, "gaussian": 3, "clipped": 4, "bounded": 4}


class Team:
    """The spaces of a team, as an environment would give them."""

    def __init__(self, kinds: Mapping[str, str], observation: int | None = None) -> None:
        self.kinds = dict(kinds)
        self.possible_agents = list(kinds)
        self.observation_spaces = {uid: box(observation or OBSERVATION[kind]) for uid, kind in kinds.items()}
        self.action_spaces = {uid: ACTIONS[kind] for uid, kind in kinds.items()}
        self.shared_observation_spaces = dict.fromkeys(kinds, STATE)
        self.num_envs = E
        self.device = torch.device("cpu")


def alike(n: int, kind: str = "discrete") -> Team:
    return Team({f"a{i}": kind for i in range(n)})


def mixed(observation: int | None = None) -> Team:
    return Team({"a0": "discrete", "b0": "gaussian", "a1": "discrete", "b1": "gaussian"}, observation)


# ---- models ------------------------------------------------------------------------------------------------------------


def built(team: Team, algorithm: str, **kwargs: Any) -> Models:
    return build_models(team, algorithm, **{"hidden": (8, 7), "squash": False, **kwargs})


def shared(team: Team, algorithm: str) -> Models:
    return built(team, algorithm, shared=True)


def distinct(team: Team, algorithm: str) -> Models:
    return built(team, algorithm, shared=False)


def squashed(team: Team, algorithm: str) -> Models:
    return built(team, algorithm, shared=False, squash=True, initial_log_std=-1.0)


def squashed_shared(team: Team, algorithm: str) -> Models:
    return built(team, algorithm, shared=True, squash=True, initial_log_std=-1.0)


def state_dependent(team: Team, algorithm: str) -> Models:
    return built(team, algorithm, shared=False, state_dependent_std=True)


def distinct_with_id(team: Team, algorithm: str) -> Models:
    return built(team, algorithm, shared=False, agent_id=True)


def mixture(team: Team, algorithm: str) -> Models:
    """The first and the last agent share, the others have their own."""
    models = built(team, algorithm, shared=False)
    models[team.possible_agents[-1]] = models[team.possible_agents[0]]
    return models


def pairs(team: Team, algorithm: str) -> Models:
    """Agents 0 and 2 share, and so do 1 and 3: two sets of one architecture whose agents alternate."""
    models = built(team, algorithm, shared=False, agent_id=True)
    a = team.possible_agents
    models[a[2]], models[a[3]] = models[a[0]], models[a[1]]
    return models


def central_critic(team: Team, algorithm: str) -> Models:
    models = built(team, algorithm, shared=False)
    first = team.possible_agents[0]
    return {uid: {"policy": roles["policy"], "value": models[first]["value"]} for uid, roles in models.items()}


def shared_policy(team: Team, algorithm: str) -> Models:
    models = built(team, algorithm, shared=False, agent_id=True)
    first = team.possible_agents[0]
    return {uid: {"policy": models[first]["policy"], "value": roles["value"]} for uid, roles in models.items()}


def chain(team: Team, algorithm: str) -> Models:
    """0 and 1 share a policy, 1 and 2 a critic: one set, though 0 and 2 share nothing."""
    models = built(team, algorithm, shared=False)
    a = team.possible_agents
    models[a[1]]["policy"] = models[a[0]]["policy"]
    models[a[2]]["value"] = models[a[1]]["value"]
    return models


def unequal(team: Team, algorithm: str) -> Models:
    """Architectures that don't stack."""
    models = {}
    for i, uid in enumerate(team.possible_agents):
        models[uid] = built(team, algorithm, shared=False, hidden=(8,) if i % 2 else (6, 5))[uid]
    return models


def frozen(team: Team, algorithm: str) -> Models:
    """The first layer of every policy stays as it is."""
    models = built(team, algorithm, shared=False)
    for roles in models.values():
        roles["policy"].net[0].requires_grad_(False)
    return models


class ByShape(CategoricalMixin, Model):
    """Looks at shapes: cannot be traced symbolically."""

    uses_agent_id = True

    def __init__(self, observation_space: Any, action_space: Any, ids: int) -> None:
        Model.__init__(self, observation_space, action_space)
        CategoricalMixin.__init__(self)
        self.first = nn.Linear(self.num_observations, 6)
        self.identity = nn.Linear(ids, 6, bias=False)
        self.last = nn.Linear(6, self.num_actions)

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        x = self.first(inputs["states"]) + self.identity(inputs["agent_id"])
        if x.shape[0] > 0:
            x = torch.tanh(x).view(x.shape[0], 2, 3).flip(1).reshape(-1, 6)
        return self.last(x), {}


class ByShapeGaussian(GaussianMixin, Model):
    def __init__(self, observation_space: Any, action_space: Any, ids: int) -> None:
        Model.__init__(self, observation_space, action_space)
        GaussianMixin.__init__(self)
        self.net = nn.Sequential(nn.Linear(self.num_observations, 6), nn.Tanh(), nn.Linear(6, self.num_actions))
        self.log_std = nn.Parameter(torch.zeros(self.num_actions))

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        x = inputs["states"]
        mean = self.net(x) if x.shape[0] > 0 else x.new_zeros(0, self.num_actions)
        return mean, self.log_std, {}


class ByShapeValue(DeterministicMixin, Model):
    def __init__(self, observation_space: Any, action_space: Any) -> None:
        Model.__init__(self, observation_space, action_space)
        DeterministicMixin.__init__(self)
        self.first, self.last = nn.Linear(self.num_observations, 6), nn.Linear(6, 1)

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        x = self.first(inputs["states"])
        if x.shape[0] > 0:
            x = x.view(x.shape[0], 6)
        return self.last(torch.tanh(x)), {}


class ByData(ByShape):
    """Looks at the data: cannot be mapped over agents either."""

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        if bool(torch.isnan(inputs["states"]).any()):
            raise ValueError("NaN")
        return super().compute(inputs, role)


class ByDataValue(ByShapeValue):
    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        if float(inputs["states"].abs().max()) > 1e30:
            raise ValueError("overflow")
        return super().compute(inputs, role)


def handwritten(team: Team, algorithm: str, by_data: bool = False, share: bool = False) -> Models:
    models: Models = {}
    for uid in team.possible_agents:
        if share and models:
            models[uid] = next(iter(models.values()))
            continue
        observations, actions = team.observation_spaces[uid], team.action_spaces[uid]
        critic_input = STATE if algorithm == "mappo" else observations
        kind = ByShapeGaussian if isinstance(actions, spaces.Box) else (ByData if by_data else ByShape)
        value = ByDataValue if by_data else ByShapeValue
        models[uid] = {
            "policy": kind(observations, actions, len(team.possible_agents)),
            "value": value(critic_input, actions),
        }
    return models


handwritten_by_data = functools.partial(handwritten, by_data=True)
handwritten_shared = functools.partial(handwritten, share=True)


class TrunkPolicy(CategoricalMixin, Model):
    def __init__(self, observation_space: Any, action_space: Any, trunk: nn.Module) -> None:
        Model.__init__(self, observation_space, action_space)
        CategoricalMixin.__init__(self)
        self.trunk, self.head = trunk, nn.Linear(6, self.num_actions)

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        return self.head(self.trunk(inputs["states"])), {}


class TrunkValue(DeterministicMixin, Model):
    def __init__(self, observation_space: Any, action_space: Any, trunk: nn.Module) -> None:
        Model.__init__(self, observation_space, action_space)
        DeterministicMixin.__init__(self)
        self.trunk, self.head = trunk, nn.Linear(6, 1)

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        return self.head(self.trunk(inputs["states"])), {}


def common_trunk(team: Team, algorithm: str) -> Models:
    """Policy and critic of an agent are two models with some layers in common (own observations only)."""
    models: Models = {}
    for uid in team.possible_agents:
        observations, actions = team.observation_spaces[uid], team.action_spaces[uid]
        trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        models[uid] = {
            "policy": TrunkPolicy(observations, actions, trunk),
            "value": TrunkValue(observations, actions, trunk),
        }
    return models


class BothRoles(CategoricalMixin, DeterministicMixin, Model):
    """Policy and critic in one."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        Model.__init__(self, observation_space, action_space)
        CategoricalMixin.__init__(self)
        DeterministicMixin.__init__(self)
        self.trunk = nn.Sequential(nn.Linear(self.num_observations, 6), nn.Tanh())
        self.choice, self.worth = nn.Linear(6, self.num_actions), nn.Linear(6, 1)

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        x = self.trunk(inputs["states"])
        return (self.choice(x) if role == "policy" else self.worth(x)), {}


def one_model(team: Team, algorithm: str) -> Models:
    """One object is policy and critic of an agent (own observations only)."""
    both = {uid: BothRoles(team.observation_spaces[uid], team.action_spaces[uid]) for uid in team.possible_agents}
    return {uid: {"policy": model, "value": model} for uid, model in both.items()}


def unlike_activations(team: Team, algorithm: str) -> Models:
    """Equal shapes, other functions."""
    names = ("tanh", "elu", "tanh", "silu")
    models = {}
    for uid, name in zip(team.possible_agents, names, strict=False):
        models[uid] = built(team, algorithm, shared=False, activation=name)[uid]
    return models


class Scaled(ByShapeValue):
    """A critic with a constant of its own: equal shapes, other functions, nothing to see in its modules."""

    def __init__(self, observation_space: Any, action_space: Any, factor: float, buffer: bool) -> None:
        super().__init__(observation_space, action_space)
        if buffer:
            self.register_buffer("factor", torch.tensor([factor]))
        else:
            self.factor = factor

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        return self.factor * super().compute(inputs, role)[0], {}


def own_constants(team: Team, algorithm: str, buffer: bool = False, traceable: bool = False) -> Models:
    models = built(team, algorithm, shared=False)
    for i, uid in enumerate(team.possible_agents):
        space = STATE if algorithm == "mappo" else team.observation_spaces[uid]
        kind = ScaledPlain if traceable else Scaled
        models[uid]["value"] = kind(space, team.action_spaces[uid], 0.5 + 0.25 * i, buffer)
    return models


class ScaledPlain(Scaled):
    """The same, in a form that can be traced."""

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        return self.factor * self.last(torch.tanh(self.first(inputs["states"]))), {}


own_buffers = functools.partial(own_constants, buffer=True)
own_traced_constants = functools.partial(own_constants, traceable=True)
own_traced_buffers = functools.partial(own_constants, buffer=True, traceable=True)


def perturb(models: Models) -> None:
    """Move every parameter away from its start: zero biases and tiny policy heads would hide mistakes."""
    with torch.no_grad():
        for p in dict.fromkeys(p for roles in models.values() for model in roles.values() for p in model.parameters()):
            p.add_(0.25 * torch.randn_like(p))

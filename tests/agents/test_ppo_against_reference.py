"""Whole updates of MAPPO and IPPO, by the library and by the slow reference, give the same parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.agents import IPPO, MAPPO
from coterie.agents.base import MultiAgent
from coterie.agents.ippo import IPPO_DEFAULT_CONFIG
from coterie.agents.mappo import MAPPO_DEFAULT_CONFIG
from coterie.memories import RandomMemory
from coterie.models import build_models
from coterie.models.base import Model
from coterie.models.mixins import CategoricalMixin, DeterministicMixin, GaussianMixin
from coterie.preprocessors import RunningStandardScaler, ValueNorm
from coterie.schedulers import KLAdaptiveLR
from tests.agents.ppo_reference import ReferencePPO, Step

T, E = 8, 3
TOLERANCE = 1e-5
Models = dict[str, dict[str, Model]]

CLASSES = {"mappo": MAPPO, "ippo": IPPO}
DEFAULTS = {"mappo": MAPPO_DEFAULT_CONFIG, "ippo": IPPO_DEFAULT_CONFIG}

# (step, environment) of what ends in the first and in the second rollout. Each has episodes that go on after the last row,
# that end in it by termination and that end in it by truncation
ENDINGS = (
    {
        "terminated": [(2, 0), (4, 1), (7, 1)],
        "truncated": [(1, 1), (5, 0), (3, 2), (7, 2)],
        "both": [(1, 2)],
        "mixed": [(5, 2)],
    },
    {
        "terminated": [(0, 0), (7, 0), (5, 2)],
        "truncated": [(2, 2), (7, 1), (4, 0)],
        "both": [(3, 1)],
        "mixed": [(1, 0)],
    },
)


# ---- teams -------------------------------------------------------------------------------------------------------------


def box(size: int, bound: float = np.inf) -> spaces.Box:
    return spaces.Box(-bound, bound, (size,), np.float32)


ACTIONS: dict[str, gymnasium.Space] = {
    "discrete": spaces.Discrete(3),
    "multidiscrete": spaces.MultiDiscrete([3, 2]),
    "gaussian": box(2),
    "clipped": box(1, 1.5),
    "bounded": spaces.Box(np.array([-1.0, 0.5], np.float32), np.array([2.0, 1.5], np.float32)),
}
STATE = box(5)
OBSERVATION = {"discrete": 4, "multidiscrete": 4, "gaussian": 3, "clipped": 4, "bounded": 4}


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


def perturb(models: Models) -> None:
    """Move every parameter away from its start: zero biases and tiny policy heads would hide mistakes."""
    with torch.no_grad():
        for p in dict.fromkeys(p for roles in models.values() for model in roles.values() for p in model.parameters()):
            p.add_(0.25 * torch.randn_like(p))


# ---- a run by both -----------------------------------------------------------------------------------------------------


def by_agent(**values: Any) -> dict[str, Any]:
    return values


@dataclass
class Case:
    """A team, its models, and what of the configuration differs from the defaults below."""

    name: str
    team: Callable[[], Team]
    models: Callable[[Team, str], Models]
    cfg: dict[str, Any] = field(default_factory=dict)
    algorithms: tuple[str, ...] = ("mappo", "ippo")


BASE = {
    "rollouts": T,
    "learning_epochs": 3,
    "mini_batches": 2,
    "learning_rate": 4e-3,
    "entropy_loss_scale": 0.02,
    "value_loss_scale": 0.7,
    "grad_norm_clip": 0.5,
    "clip_predicted_values": True,
    "value_clip": 0.05,
    "ratio_clip": 0.05,
    "time_limit_bootstrap": True,
    "discount_factor": 0.95,
    "lambda": 0.9,
    "experiment": {"write_interval": 0, "checkpoint_interval": 0},
}


class Run:
    """The library's agents and the reference side by side, on made-up data."""

    def __init__(self, case: Case, algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.team = case.team()
        self.models = case.models(self.team, algorithm)
        perturb(self.models)
        self.cfg = {**BASE, **case.cfg}
        kinds = {uid: (self.team.observation_spaces[uid].shape, kind) for uid, kind in self.team.kinds.items()}
        complete = {**DEFAULTS[algorithm].copy(), **self.cfg}
        self.reference = ReferencePPO(self.models, kinds, complete, algorithm == "mappo")
        self.before = {id(p): p.detach().clone() for p in self._parameters()}
        names = self.team.possible_agents
        self.agent: MultiAgent = CLASSES[algorithm](
            names,
            self.models,
            {uid: RandomMemory(T, E) for uid in names},
            self.team.observation_spaces,
            self.team.action_spaces,
            "cpu",
            self.cfg,
            self.team.shared_observation_spaces,
        )
        self.agent.init({"timesteps": 2 * T})
        self.agent.set_running_mode("train")
        self.data = torch.Generator().manual_seed(7)
        self.states = self._observe()
        self.shared = self._draw(5)
        self.timestep = 0
        self.permutations: list[Tensor] = []
        order = torch.Generator().manual_seed(11)
        randperm = torch.randperm

        def recorded(n: int, **kwargs: Any) -> Tensor:
            kwargs.pop("generator", None)
            self.permutations.append(randperm(n, generator=order))
            return self.permutations[-1].to(kwargs.get("device", "cpu"))

        monkeypatch.setattr(torch, "randperm", recorded)

    def _parameters(self) -> list[nn.Parameter]:
        return [p for roles in self.models.values() for model in roles.values() for p in model.parameters()]

    def _draw(self, width: int) -> Tensor:
        return 1.5 * torch.randn(E, width, generator=self.data) + 0.5

    def _observe(self) -> dict[str, Tensor]:
        return {uid: self._draw(space.shape[0]) for uid, space in self.team.observation_spaces.items()}

    def _endings(self, t: int, update: int) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        plan, names = ENDINGS[update], self.team.possible_agents
        terminated = {uid: torch.zeros(E, 1, dtype=torch.bool) for uid in names}
        truncated = {uid: torch.zeros(E, 1, dtype=torch.bool) for uid in names}
        for kind, where in plan.items():
            for e in (e for step, e in where if step == t):
                for i, uid in enumerate(names):
                    terminated[uid][e] = kind in ("terminated", "both") or (kind == "mixed" and i % 2 == 0)
                    truncated[uid][e] = kind in ("truncated", "both") or (kind == "mixed" and i % 2 == 1)
        first = names[0]
        return terminated, truncated, terminated[first] | truncated[first]

    def _step(self, t: int, update: int) -> Step:
        timesteps = 2 * T
        actions, log_prob, _ = self.agent.act(self.states, self.timestep, timesteps)
        actions, log_prob = ({uid: x[uid].clone() for uid in self.team.possible_agents} for x in (actions, log_prob))
        terminated, truncated, ended = self._endings(t, update)
        rewards = {uid: 2 * torch.randn(E, 1, generator=self.data) + 1 for uid in self.team.possible_agents}
        next_states, next_shared = self._observe(), self._draw(5)
        infos: dict[str, Any] = {"shared_states": self.shared, "shared_next_states": next_shared}
        final_states = final_shared = None
        if bool(ended.any()):
            # rows that didn't end are nobody's business
            final_states = {uid: torch.where(ended, x, 1e3 * x) for uid, x in self._observe().items()}
            final_shared = torch.where(ended, self._draw(5), 1e3 * self._draw(5))
            infos |= {"final_states": final_states, "final_shared_states": final_shared}
        step = Step(
            self.timestep,
            timesteps,
            *(self.states, actions, log_prob, rewards, next_states, terminated, truncated),
            *(self.shared, next_shared, final_states, final_shared),
        )
        given = {uid: x.clone() for uid, x in rewards.items()}
        self.agent.record_transition(
            self.states, actions, given, next_states, terminated, truncated, infos, self.timestep, timesteps
        )
        self.agent.post_interaction(self.timestep, timesteps)
        assert all(torch.equal(given[uid], rewards[uid]) for uid in rewards), "the environment's rewards were changed"
        self.states, self.shared = next_states, next_shared
        self.timestep += 1
        return step

    def rollout(self, update: int) -> None:
        """Collect a rollout, after which the library updates; then let the reference do the same."""
        before = len(self.permutations)
        steps = []
        for t in range(T):
            self.check_log_prob()
            assert len(self.permutations) == before, "an update in the middle of a rollout"
            steps.append(self._step(t, update))
        draws = self.permutations[before:]
        orders: dict[str, list[Tensor]] = {}
        for learner in self.agent.learners:
            epochs = self.reference.setting("learning_epochs", learner.names[0])
            orders.update(dict.fromkeys(learner.names, draws[:epochs]))
            draws = draws[epochs:]
        assert not draws
        self.reference.update(steps, orders)

    def check_log_prob(self) -> None:
        """What acting calls the log-probability is that of torch's distribution, with the reference's normalisers."""
        random = torch.get_rng_state()
        actions, log_prob, outputs = self.agent.act(self.states, self.timestep, 2 * T)
        torch.set_rng_state(random)
        for uid in self.team.possible_agents:
            space, action = self.team.action_spaces[uid], actions[uid]
            with torch.no_grad():
                expected = self.reference.policy(uid, self.states[uid]).log_prob(action)
            inside = torch.ones(E, dtype=torch.bool)
            if isinstance(space, spaces.Box):
                low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
                assert bool(((action >= low) & (action <= high)).all())
                inside = ((action > low) & (action < high)).all(-1)
            assert log_prob[uid].shape == (E, 1)
            torch.testing.assert_close(log_prob[uid][inside, 0].double(), expected[inside], atol=5e-5, rtol=0)
            assert outputs[uid]["mean_actions"].shape == action.shape

    def difference(self) -> float:
        """The largest difference of a parameter from the reference's."""
        worst = 0.0
        for uid, roles in self.models.items():
            for role, model in roles.items():
                theirs = self.reference.models[uid][role].state_dict()
                mine = model.state_dict()
                assert mine.keys() == theirs.keys()
                worst = max(worst, *(float((mine[k] - theirs[k]).abs().max()) for k in mine))
        return worst

    def movement(self) -> float:
        """The smallest of all models' largest change of a parameter."""
        changes = []
        for roles in self.models.values():
            for model in roles.values():
                changes.append(max(float((p.detach() - self.before[id(p)]).abs().max()) for p in model.parameters()))
        return min(changes)


SCALER = {"state_preprocessor": RunningStandardScaler, "state_preprocessor_kwargs": {}}
SHARED_SCALER = {"shared_state_preprocessor": RunningStandardScaler}
FOUR = ("a0", "b0", "a1", "b1")


def four(*values: Any) -> dict[str, Any]:
    return dict(zip(FOUR, values, strict=True))


def three(*values: Any) -> dict[str, Any]:
    return dict(zip(("a0", "a1", "a2"), values, strict=True))


def shape_rewards(rewards: Tensor, timestep: int, timesteps: int) -> Tensor:
    return 0.1 * rewards + timestep / timesteps


def tame_rewards(rewards: Tensor, timestep: int, timesteps: int) -> Tensor:
    return rewards.mul_(0.5)  # in place, which is the shaper's right but must not reach the environment's tensor


def warm_up(epoch: int) -> float:
    return 1 / (1 + 0.3 * epoch)


LOSS_VALUES = {
    "discount_factor": three(0.9, 0.99, 0.5),
    "lambda": three(0.95, 0.0, 1.0),
    "ratio_clip": three(0.02, 0.2, 0.1),
    "value_clip": three(0.02, 0.3, 0.1),
    "clip_predicted_values": three(True, False, True),
    "entropy_loss_scale": three(0.0, 0.05, 0.01),
    "value_loss_scale": three(0.5, 2.0, 0.0),
    "time_limit_bootstrap": three(True, False, True),
    "rewards_shaper": three(None, shape_rewards, tame_rewards),
}
SET_VALUES = {
    "learning_rate": three(1e-3, 5e-3, 3e-3),
    "grad_norm_clip": three(0.1, 0.0, 0.5),
    "kl_threshold": three(0.0, 1e-5, 1.0),
}
NORMALISERS = {"value_preprocessor": ValueNorm, **SCALER}

CASES = [
    # how parameters are shared
    Case("shared", lambda: alike(3), shared),
    Case("distinct", lambda: alike(3), distinct),
    Case("one agent", lambda: alike(1), distinct),
    Case("distinct with ids", lambda: alike(3), distinct_with_id),
    Case("two groups shared", mixed, shared),
    Case("two groups distinct", mixed, distinct),
    Case("mixture", lambda: alike(4), mixture),
    Case("mixture normalised", lambda: alike(4), mixture, NORMALISERS),
    Case("pairs", lambda: alike(4), pairs),
    Case("pairs normalised", lambda: alike(4), pairs, NORMALISERS),
    Case("central critic", lambda: alike(3), central_critic),
    Case("central critic normalised", lambda: alike(3), central_critic, NORMALISERS),
    Case("central critic of unlike agents", mixed, central_critic, NORMALISERS, algorithms=("mappo",)),
    Case("critic of unlike actions", lambda: mixed(4), central_critic, NORMALISERS),
    Case("shared policy", lambda: alike(3), shared_policy),
    Case("chain", lambda: alike(3), chain, NORMALISERS),
    Case("unequal", lambda: alike(3), unequal),
    Case("frozen layer", lambda: alike(3), frozen),
    Case("common trunk", lambda: alike(3), common_trunk, algorithms=("ippo",)),
    # distributions
    Case("multidiscrete", lambda: alike(3, "multidiscrete"), distinct),
    Case("gaussian", lambda: alike(3, "gaussian"), distinct),
    Case("state-dependent std", lambda: alike(3, "gaussian"), state_dependent),
    Case("clipped actions", lambda: alike(3, "clipped"), distinct),
    Case("squashed", lambda: alike(3, "bounded"), squashed, {"entropy_loss_scale": 0.0}),
    Case("squashed shared", lambda: alike(3, "bounded"), squashed_shared, {"entropy_loss_scale": 0.0}),
    # models that nothing is known about
    Case("handwritten", lambda: alike(3), handwritten),
    Case("handwritten, many", lambda: alike(6), handwritten, NORMALISERS),
    Case("handwritten, unlike", mixed, handwritten),
    Case("handwritten, shared", lambda: alike(3), handwritten_shared),
    Case("handwritten, by data", lambda: alike(3), handwritten_by_data),
    Case("handwritten, by data, many", lambda: alike(6), handwritten_by_data, NORMALISERS),
    # values of the configuration by agent
    Case("losses by agent, distinct", lambda: alike(3), distinct, LOSS_VALUES),
    Case("losses by agent, shared", lambda: alike(3), shared, LOSS_VALUES),
    Case("losses by agent, two groups", mixed, shared, {"lambda": four(0.9, 0.5, 0.0, 1.0), "ratio_clip": four(0.1, 0.02, 0.3, 0.05)}),
    Case("everything by agent", lambda: alike(3), distinct, {**LOSS_VALUES, **SET_VALUES, **NORMALISERS}),
    Case("epochs by agent", lambda: alike(3), distinct, {"learning_epochs": three(2, 4, 2), "mini_batches": three(2, 1, 2)}),
    Case("minibatches by agent", mixed, distinct, {"mini_batches": four(1, 3, 5, 3)}),
    # options
    Case("no value clipping", lambda: alike(3), shared, {"clip_predicted_values": False}),
    Case("no bootstrap", lambda: alike(3), distinct, {"time_limit_bootstrap": False}),
    Case("no bootstrap, normalised", lambda: alike(3), shared, {"time_limit_bootstrap": False, **NORMALISERS}),
    Case("no gradient clipping", lambda: alike(3), distinct, {"grad_norm_clip": 0}),
    Case("uneven minibatches", lambda: alike(3), distinct, {"mini_batches": 5}),
    Case("value norm", lambda: alike(3), shared, {"value_preprocessor": ValueNorm, "value_preprocessor_kwargs": {"beta": 0.9}}),
    Case("value norm, distinct", lambda: alike(3), distinct, {"value_preprocessor": ValueNorm}),
    Case("value scaler", lambda: alike(3), distinct, {"value_preprocessor": RunningStandardScaler}),
    Case("value scaler, two groups", mixed, shared, {"value_preprocessor": RunningStandardScaler}),
    Case("scalers", lambda: alike(3), distinct, {**SCALER, "state_preprocessor_kwargs": {"clip_threshold": 1.0}}),
    Case("scalers of two groups", mixed, shared, SCALER),
    Case("scaler by agent", lambda: alike(3), distinct, {"state_preprocessor": three(RunningStandardScaler, None, RunningStandardScaler)}),
    Case("shared scaler, distinct", lambda: alike(3), distinct, {**SHARED_SCALER, **NORMALISERS}, ("mappo",)),
    Case("shared scaler, shared", lambda: alike(3), shared, {**SHARED_SCALER, **NORMALISERS}, ("mappo",)),
    Case("shared scaler, pairs", lambda: alike(4), pairs, {**SHARED_SCALER, **NORMALISERS}, ("mappo",)),
    Case("shared scaler, two groups", mixed, shared, {**SHARED_SCALER, **NORMALISERS}, ("mappo",)),
    Case("shared scaler, chain", lambda: alike(3), chain, {**SHARED_SCALER, **NORMALISERS}, ("mappo",)),
    Case("two rates", lambda: alike(3), distinct, {"learning_rate": (1e-3, 6e-3), "grad_norm_clip": 0.1}),
    Case("two rates, shared", mixed, shared, {"learning_rate": (6e-3, 1e-3), "grad_norm_clip": 0.1}),
    Case("two rates by agent", lambda: alike(3), distinct, {"learning_rate": three((1e-3, 6e-3), 2e-3, (5e-3, 1e-3)), "grad_norm_clip": 0.1}),
    Case("shaped rewards", lambda: alike(3), shared, {"rewards_shaper": shape_rewards}),
    # learning rates that change and updates that end early
    Case("adaptive rate", lambda: alike(3), distinct, {
        "learning_rate_scheduler": KLAdaptiveLR, "learning_rate_scheduler_kwargs": {"kl_threshold": 3e-4},
    }),
    Case("adaptive rate by agent", lambda: alike(3), distinct, {
        "learning_rate_scheduler": KLAdaptiveLR,
        "learning_rate_scheduler_kwargs": three({"kl_threshold": 1e-6}, {"kl_threshold": 3e-4}, {"kl_threshold": 1.0}),
    }),
    Case("adaptive rate, two groups", mixed, shared, {
        "learning_rate_scheduler": KLAdaptiveLR, "learning_rate_scheduler_kwargs": {"kl_threshold": 3e-4},
    }),
    Case("adaptive rates, two each", lambda: alike(3), distinct, {
        "learning_rate": (1e-3, 6e-3), "learning_rate_scheduler": KLAdaptiveLR,
        "learning_rate_scheduler_kwargs": {"kl_threshold": 3e-4},
    }),
    Case("torch's scheduler", lambda: alike(3), distinct, {
        "learning_rate_scheduler": torch.optim.lr_scheduler.LambdaLR, "learning_rate_scheduler_kwargs": {"lr_lambda": warm_up},
    }),
    Case("torch's scheduler, two rates", lambda: alike(3), shared, {
        "learning_rate": (1e-3, 6e-3), "learning_rate_scheduler": torch.optim.lr_scheduler.ExponentialLR,
        "learning_rate_scheduler_kwargs": {"gamma": 0.8},
    }),
    Case("scheduler and stop", lambda: alike(3), distinct, {
        "kl_threshold": three(1e-5, 0, 1e-5), "learning_rate_scheduler": torch.optim.lr_scheduler.ExponentialLR,
        "learning_rate_scheduler_kwargs": {"gamma": 0.8},
    }),
    Case("stop in all sets", lambda: alike(3), shared, {"kl_threshold": 1e-6}),
]  # fmt: skip


def parameters() -> list[Any]:
    return [pytest.param(case, a, id=f"{case.name}-{a}") for case in CASES for a in case.algorithms]


@pytest.mark.parametrize(("case", "algorithm"), parameters())
def test_two_updates_equal_the_reference(case: Case, algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(case, algorithm, monkeypatch)
    for update in range(2):
        run.rollout(update)
        assert run.difference() < TOLERANCE
    run.check_log_prob()  # with normalisers that have learned twice
    if 0.0 not in np.atleast_1d(list(getattr(run.cfg["value_loss_scale"], "values", lambda: [1.0])())):
        assert run.movement() > 1e-3

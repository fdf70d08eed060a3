"""Whole updates of MAPPO and IPPO, by the library and by the slow reference, give the same parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie import functional
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
from tests.agents.ppo_reference import ReferencePPO, Step, generalised_advantages

T, E = 8, 3
RANDPERM = torch.randperm
TOLERANCE = 1e-5
Models = dict[str, dict[str, Model]]

CLASSES = {"mappo": MAPPO, "ippo": IPPO}
DEFAULTS = {"mappo": MAPPO_DEFAULT_CONFIG, "ippo": IPPO_DEFAULT_CONFIG}

# (step, environment) of what ends in the first and in the second rollout: for all agents by "terminated", "truncated" or
# "both", for every other agent by either ("mixed"), or for every other agent alone ("first"). Each has episodes that go on
# after the last row, that end in it by termination and that end in it by truncation
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

    def __init__(self, case: Case, algorithm: str, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> None:
        torch.manual_seed(seed)
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
        self.data = torch.Generator().manual_seed(7 + seed)
        self.states = self._observe()
        self.shared = self._draw(5)
        self.timestep = 0
        self.log_prob_error = 0.0
        self.filler = 1e3  # of the final states of environments that didn't end, which are nobody's business
        self.endings: Sequence[Mapping[str, Sequence[tuple[int, int]]]] = ENDINGS
        self.permutations: list[Tensor] = []
        order = torch.Generator().manual_seed(11)
        randperm = RANDPERM

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
        plan, names = self.endings[update], self.team.possible_agents
        terminated = {uid: torch.zeros(E, 1, dtype=torch.bool) for uid in names}
        truncated = {uid: torch.zeros(E, 1, dtype=torch.bool) for uid in names}
        for kind, where in plan.items():
            for e in (e for step, e in where if step == t):
                for i, uid in enumerate(names):
                    terminated[uid][e] = kind in ("terminated", "both") or (kind in ("mixed", "first") and i % 2 == 0)
                    truncated[uid][e] = kind in ("truncated", "both") or (kind == "mixed" and i % 2 == 1)
        over = torch.stack([terminated[uid] | truncated[uid] for uid in names]).all(0)
        return terminated, truncated, over

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
            final_states = {uid: torch.where(ended, x, self.filler) for uid, x in self._observe().items()}
            final_shared = torch.where(ended, self._draw(5), self.filler)
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
            assert len(self.permutations) == before, "an update in the middle of a rollout"
            steps.append(self._step(t, update))
        draws = self.permutations[before:]
        orders: dict[str, list[Tensor]] = {}
        for learner in self.agent.learners:
            epochs = self.reference.setting("learning_epochs", learner.names[0])
            orders.update(dict.fromkeys(learner.names, draws[:epochs]))
            draws = draws[epochs:]
        assert not draws
        self.check_log_prob(steps)
        self.reference.update(steps, orders)

    def check_log_prob(self, steps: Sequence[Step]) -> None:
        """What acting calls the log-probability is that of torch's distribution, with the reference's normalisers."""
        for uid in self.team.possible_agents:
            space = self.team.action_spaces[uid]
            states, action, log_prob = (
                torch.cat([getattr(s, k)[uid] for s in steps]) for k in ("states", "actions", "log_prob")
            )
            with torch.no_grad():
                expected = self.reference.policy(uid, states).log_prob(action)
            inside = torch.ones(len(action), dtype=torch.bool)
            if isinstance(space, spaces.Box):
                low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
                assert bool(((action >= low) & (action <= high)).all())
                inside = ((action > low) & (action < high)).all(-1)
            assert log_prob.shape == (len(action), 1)
            self.log_prob_error = max(self.log_prob_error, float((log_prob[inside, 0] - expected[inside]).abs().max()))

    def act(self) -> None:
        """Act once more without a step."""
        actions, log_prob, outputs = self.agent.act(self.states, self.timestep, 2 * T)
        nothing: dict[str, Tensor] = {}
        self.check_log_prob(
            [Step(0, 0, self.states, dict(actions), dict(log_prob), *([nothing] * 4), self.shared, self.shared)]
        )
        for uid in self.team.possible_agents:
            assert outputs[uid]["mean_actions"].shape == actions[uid].shape

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
        return min(
            max(float((p.detach() - self.before[id(p)]).abs().max()) for p in model.parameters())
            for roles in self.models.values()
            for model in roles.values()
        )


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
    Case("one agent", lambda: alike(1), distinct, algorithms=("mappo",)),
    Case("distinct with ids", lambda: alike(3), distinct_with_id, algorithms=("ippo",)),
    Case("two groups shared", mixed, shared),
    Case("two groups distinct", mixed, distinct),
    Case("mixture", lambda: alike(4), mixture),
    Case("mixture normalised", lambda: alike(4), mixture, NORMALISERS),
    Case("pairs", lambda: alike(4), pairs),
    Case("pairs normalised", lambda: alike(4), pairs, NORMALISERS),
    Case("central critic", lambda: alike(3), central_critic),
    Case("central critic normalised", lambda: alike(3), central_critic, NORMALISERS),
    Case("central critic of unlike agents", mixed, central_critic, NORMALISERS, ("mappo",)),
    Case("critic of unlike actions", lambda: mixed(4), central_critic, NORMALISERS),
    Case("shared policy", lambda: alike(3), shared_policy, algorithms=("mappo",)),
    Case("chain", lambda: alike(3), chain, NORMALISERS),
    Case("unequal", lambda: alike(3), unequal, algorithms=("mappo",)),
    Case("frozen layer", lambda: alike(3), frozen, algorithms=("mappo",)),
    Case("common trunk", lambda: alike(3), common_trunk, algorithms=("ippo",)),
    Case("one model for both roles", lambda: alike(3), one_model, algorithms=("ippo",)),
    Case("unlike activations", lambda: alike(4), unlike_activations, algorithms=("mappo",)),
    Case("own constants", lambda: alike(5), own_constants, algorithms=("mappo",)),
    Case("own buffers", lambda: alike(5), own_buffers, algorithms=("ippo",)),
    Case("own traced constants", lambda: alike(5), own_traced_constants, algorithms=("mappo",)),
    Case("own traced buffers", lambda: alike(5), own_traced_buffers, algorithms=("ippo",)),
    # distributions
    Case("multidiscrete", lambda: alike(3, "multidiscrete"), distinct, algorithms=("mappo",)),
    Case("gaussian", lambda: alike(3, "gaussian"), distinct, algorithms=("ippo",)),
    Case("state-dependent std", lambda: alike(3, "gaussian"), state_dependent, algorithms=("mappo",)),
    Case("clipped actions", lambda: alike(3, "clipped"), distinct, algorithms=("ippo",)),
    Case("squashed", lambda: alike(3, "bounded"), squashed, {"entropy_loss_scale": 0.0}, ("mappo",)),
    Case("squashed shared", lambda: alike(3, "bounded"), squashed_shared, {"entropy_loss_scale": 0.0}, ("ippo",)),
    # models that nothing is known about
    Case("handwritten", lambda: alike(3), handwritten),
    Case("handwritten, many", lambda: alike(6), handwritten, NORMALISERS),
    Case("handwritten, unlike", mixed, handwritten),
    Case("handwritten, shared", lambda: alike(3), handwritten_shared, algorithms=("ippo",)),
    Case("handwritten, by data", lambda: alike(3), handwritten_by_data, algorithms=("mappo",)),
    Case("handwritten, by data, many", lambda: alike(6), handwritten_by_data, NORMALISERS),
    # values of the configuration by agent
    Case("losses by agent, distinct", lambda: alike(3), distinct, LOSS_VALUES),
    Case("losses by agent, shared", lambda: alike(3), shared, LOSS_VALUES),
    Case("losses by agent, two groups", mixed, shared, {
        "lambda": four(0.9, 0.5, 0.0, 1.0), "ratio_clip": four(0.1, 0.02, 0.3, 0.05),
    }, ("ippo",)),
    Case("everything by agent", lambda: alike(3), distinct, {**LOSS_VALUES, **SET_VALUES, **NORMALISERS}),
    Case("epochs by agent", lambda: alike(3), distinct, {
        "learning_epochs": three(2, 4, 2), "mini_batches": three(2, 1, 2),
    }, ("mappo",)),
    Case("minibatches by agent", mixed, distinct, {"mini_batches": four(1, 3, 5, 3)}, ("ippo",)),
    # options
    Case("no value clipping", lambda: alike(3), shared, {"clip_predicted_values": False}, ("ippo",)),
    Case("no bootstrap", lambda: alike(3), distinct, {"time_limit_bootstrap": False}),
    Case("no bootstrap, normalised", lambda: alike(3), shared, {"time_limit_bootstrap": False, **NORMALISERS}),
    Case("no gradient clipping", lambda: alike(3), distinct, {"grad_norm_clip": 0}, ("mappo",)),
    Case("uneven minibatches", lambda: alike(3), distinct, {"mini_batches": 5}, ("ippo",)),
    Case("value norm", lambda: alike(3), shared, {
        "value_preprocessor": ValueNorm, "value_preprocessor_kwargs": {"beta": 0.9},
    }, ("mappo",)),
    Case("value norm, distinct", lambda: alike(3), distinct, {"value_preprocessor": ValueNorm}, ("ippo",)),
    Case("value scaler", lambda: alike(3), distinct, {"value_preprocessor": RunningStandardScaler}, ("mappo",)),
    Case("value scaler, two groups", mixed, shared, {"value_preprocessor": RunningStandardScaler}, ("ippo",)),
    Case("scalers", lambda: alike(3), distinct, {**SCALER, "state_preprocessor_kwargs": {"clip_threshold": 1.0}}),
    Case("scalers of two groups", mixed, shared, SCALER),
    Case("scaler by agent", lambda: alike(3), distinct, {
        "state_preprocessor": three(RunningStandardScaler, None, RunningStandardScaler),
    }, ("ippo",)),
    Case("value norm by agent", lambda: alike(3), distinct, {
        "value_preprocessor": three(ValueNorm, None, ValueNorm),
    }, ("mappo",)),
    Case("shared scaler by agent", lambda: alike(3), distinct, {
        "shared_state_preprocessor": three(None, None, RunningStandardScaler),
    }, ("mappo",)),
    Case("scaler's settings by agent", lambda: alike(3), distinct, {
        **SCALER, "state_preprocessor_kwargs": three({"clip_threshold": 1.0}, {}, {"epsilon": 0.1}),
    }, ("ippo",)),
    Case("kinds of value normalisers by agent", lambda: alike(3), distinct, {
        "value_preprocessor": three(ValueNorm, RunningStandardScaler, ValueNorm),
        "value_preprocessor_kwargs": three({"beta": 0.5}, {}, {}),
    }, ("mappo",)),
    Case("shared scaler, distinct", lambda: alike(3), distinct, {**SHARED_SCALER, **NORMALISERS}, ("mappo",)),
    Case("shared scaler, shared", lambda: alike(3), shared, {**SHARED_SCALER, **NORMALISERS}, ("mappo",)),
    Case("shared scaler, pairs", lambda: alike(4), pairs, {**SHARED_SCALER, **NORMALISERS}, ("mappo",)),
    Case("shared scaler, two groups", mixed, shared, {**SHARED_SCALER, **NORMALISERS}, ("mappo",)),
    Case("shared scaler, chain", lambda: alike(3), chain, {**SHARED_SCALER, **NORMALISERS}, ("mappo",)),
    Case("two rates", lambda: alike(3), distinct, {"learning_rate": (1e-3, 6e-3), "grad_norm_clip": 0.1}),
    Case("two rates, shared", mixed, shared, {"learning_rate": (6e-3, 1e-3), "grad_norm_clip": 0.1}),
    Case("two rates by agent", lambda: alike(3), distinct, {
        "learning_rate": three((1e-3, 6e-3), 2e-3, (5e-3, 1e-3)), "grad_norm_clip": 0.1,
    }, ("mappo",)),
    Case("shaped rewards", lambda: alike(3), shared, {"rewards_shaper": shape_rewards}, ("ippo",)),
    # learning rates that change and updates that end early
    Case("adaptive rate", lambda: alike(3), distinct, {
        "learning_rate_scheduler": KLAdaptiveLR, "learning_rate_scheduler_kwargs": {"kl_threshold": 3e-4},
    }, ("mappo",)),
    Case("adaptive rate by agent", lambda: alike(3), distinct, {
        "learning_rate_scheduler": KLAdaptiveLR,
        "learning_rate_scheduler_kwargs": three({"kl_threshold": 1e-6}, {"kl_threshold": 3e-4}, {"kl_threshold": 1.0}),
    }, ("ippo",)),
    Case("adaptive rate, two groups", mixed, shared, {
        "learning_rate_scheduler": KLAdaptiveLR, "learning_rate_scheduler_kwargs": {"kl_threshold": 3e-4},
    }, ("mappo",)),
    Case("adaptive rates, two each", lambda: alike(3), distinct, {
        "learning_rate": (1e-3, 6e-3), "learning_rate_scheduler": KLAdaptiveLR,
        "learning_rate_scheduler_kwargs": {"kl_threshold": 3e-4},
    }, ("ippo",)),
    Case("torch's scheduler", lambda: alike(3), distinct, {
        "learning_rate_scheduler": torch.optim.lr_scheduler.LambdaLR, "learning_rate_scheduler_kwargs": {"lr_lambda": warm_up},
    }, ("ippo",)),
    Case("torch's scheduler, two rates", lambda: alike(3), shared, {
        "learning_rate": (1e-3, 6e-3), "learning_rate_scheduler": torch.optim.lr_scheduler.ExponentialLR,
        "learning_rate_scheduler_kwargs": {"gamma": 0.8},
    }, ("mappo",)),
    Case("scheduler and stop", lambda: alike(3), distinct, {
        "kl_threshold": three(1e-5, 0, 1e-5), "learning_rate_scheduler": torch.optim.lr_scheduler.ExponentialLR,
        "learning_rate_scheduler_kwargs": {"gamma": 0.8},
    }, ("ippo",)),
    Case("stop in all sets", lambda: alike(3), shared, {"kl_threshold": 1e-6}, ("mappo",)),
]  # fmt: skip


def parameters() -> list[Any]:
    return [pytest.param(case, a, id=f"{case.name}-{a}") for case in CASES for a in case.algorithms]


def run_by_both(case: Case, algorithm: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Two updates by both, which must agree after each, on the first data for which they can.

    The reference has float64, the library float32: where a ratio is within rounding of its clipping bound, or a gradient
    almost nothing but rounding, which Adam then blows up to a whole step, they may differ though both are right.
    """
    for seed in range(20):
        with monkeypatch.context() as patch:
            run = Run(case, algorithm, patch, seed)
            differences = []
            for update in range(2):
                run.rollout(update)
                differences.append(run.difference())
            if run.reference.kink < 1e-6 or run.reference.doubt > 2e-6:
                continue
            assert max(differences) < TOLERANCE
            run.act()  # with normalisers that have learned twice
            assert run.log_prob_error < 5e-5
            return run
    raise AssertionError("no data on which float32 and float64 can be compared")


@pytest.mark.parametrize(("case", "algorithm"), parameters())
def test_two_updates_equal_the_reference(case: Case, algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_by_both(case, algorithm, monkeypatch)
    scales = run.cfg["value_loss_scale"]
    if not isinstance(scales, dict) or all(scales.values()):
        assert run.movement() > 1e-3


def test_one_set_stops_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("stop", lambda: alike(3), distinct, {"learning_epochs": 4, "kl_threshold": three(1e-5, 0.0, 10.0)})
    run = run_by_both(case, "mappo", monkeypatch)
    assert [s.epochs for s in run.reference.sets] == [1, 4, 4]
    assert len(run.agent.learners) == 1


def test_a_stop_may_come_later_than_the_first_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = {"learning_epochs": 5, "mini_batches": 1, "kl_threshold": three(1e-5, 2e-4, 0.0)}
    run = run_by_both(Case("stop", lambda: alike(3), distinct, cfg), "mappo", monkeypatch)
    taken = [s.epochs for s in run.reference.sets]
    assert taken[0] == 2, "the first epoch's only minibatch is measured before any step"
    assert taken[0] < taken[1] < taken[2] == 5


def test_adaptive_rates_move_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES if case.name == "adaptive rate by agent")
    run = run_by_both(case, "ippo", monkeypatch)
    rates = [s.optimizer.param_groups[0]["lr"] for s in run.reference.sets]
    assert rates[0] < 4e-3 < rates[2]


WAYS = {
    "shared": "single", "distinct": "stacked", "pairs": "stacked", "chain": "loop", "handwritten": "loop",
    "handwritten, many": "vmap", "handwritten, shared": "single", "handwritten, by data, many": "loop",
    "central critic of unlike agents": "single",
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_cases_reach_every_way_of_running_models(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(next(case for case in CASES if case.name == name), "mappo", monkeypatch)
    ways = {batch.mode for group in run.agent.groups for batch in (group.policy, group.value) if batch is not None}
    assert WAYS[name] in ways


@pytest.mark.parametrize("algorithm", CLASSES)
@pytest.mark.parametrize("name", ["scalers", "scalers of two groups", "handwritten, many", "mixture normalised"])
def test_the_first_ratio_is_one(name: str, algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES if case.name == name)
    run = Run(replace(case, cfg={**case.cfg, **SCALER}), algorithm, monkeypatch)
    ratios: list[Tensor] = []
    loss = functional.clipped_surrogate_loss

    def listening(log_ratio: Tensor, *args: Any) -> Tensor:
        ratios.append(log_ratio.detach().exp())
        return loss(log_ratio, *args)

    monkeypatch.setattr(functional, "clipped_surrogate_loss", listening)
    for update in range(2):
        ratios.clear()
        run.rollout(update)
        for learner in run.agent.learners:
            groups, minibatches = len(learner.groups), 6
            for first in ratios[:groups]:
                torch.testing.assert_close(first, torch.ones_like(first), atol=1e-6, rtol=0)
            assert all(float((later - 1).abs().max()) > 1e-3 for later in ratios[groups : minibatches * groups])
            del ratios[: minibatches * groups]
        assert not ratios
    for owner in run.reference.sets:
        for scaler in owner.state_normalisers.values():
            assert float(scaler.moments()[0].abs().max()) > 0.1, "the normaliser has learned"


@pytest.mark.parametrize("algorithm", CLASSES)
def test_final_states_of_environments_that_go_on_are_not_read(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Case("filler", lambda: alike(3), shared), algorithm, monkeypatch)
    run.filler = float("nan")
    run.rollout(0)
    assert run.difference() < TOLERANCE


@pytest.mark.parametrize("algorithm", CLASSES)
def test_an_agent_may_be_terminated_before_the_others(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Case("alone", lambda: alike(3), distinct), algorithm, monkeypatch)
    run.endings = [{"first": [(2, 0), (7, 1)], "truncated": [(4, 2)]}]
    run.rollout(0)
    assert run.difference() < TOLERANCE


def test_the_reference_by_hand() -> None:
    """Two environments, four steps: one goes on, one is terminated at step 0 and truncated at step 2."""
    values = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]])
    following = torch.tensor([[2.0, 9.0], [3.0, 3.0], [4.0, 7.0], [5.0, 5.0]])
    terminated = torch.tensor([[0, 1], [0, 0], [0, 0], [0, 0]]).bool()
    truncated = torch.tensor([[0, 0], [0, 0], [0, 1], [0, 0]]).bool()
    arguments = torch.ones(4, 2), values, following, terminated, truncated, 0.5, 0.5
    going_on = generalised_advantages(*arguments, bootstrap=True)
    cut = generalised_advantages(*arguments, bootstrap=False)
    # delta of the first: 1, .5, 0, -.5;  of the second: 0, .5, 1.5 (-2 without a bootstrap), -.5
    first = [1.11718750, 0.46875, -0.125, -0.5]
    torch.testing.assert_close(going_on[:, 0].tolist(), first)
    torch.testing.assert_close(cut[:, 0].tolist(), first)
    torch.testing.assert_close(going_on[:, 1].tolist(), [0.0, 0.5 + 0.25 * 1.5, 1.5, -0.5])
    torch.testing.assert_close(cut[:, 1].tolist(), [0.0, 0.5 + 0.25 * -2.0, -2.0, -0.5])

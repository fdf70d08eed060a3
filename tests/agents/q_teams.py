"""Made-up teams and their action values, for comparing the library with the slow reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.models import build_models
from coterie.models.base import Model
from coterie.models.mixers import AttentionMixer, QMIXMixer
from coterie.models.mixins import QMixin
from tests.agents.ppo_memory_models import Remembering
from tests.agents.ppo_teams import E, box
from tests.agents.q_mixers import Crossing

STATE = 5
SIZES = {"small": (3, 3), "big": (4, 4)}  # of observations, and number of actions


class QTeam:
    """The spaces of a team, as an environment would give them.

    :param kinds: "small" or "big" by agent
    :param scripted: agents that act by a rule
    :param frozen: agents with networks that don't learn
    """

    def __init__(self, kinds: Mapping[str, str], scripted: tuple[str, ...] = (), frozen: tuple[str, ...] = ()) -> None:
        self.kinds, self.scripted, self.frozen = dict(kinds), scripted, frozen
        self.possible_agents = list(kinds)
        self.observation_spaces = {uid: box(SIZES[kind][0]) for uid, kind in kinds.items()}
        self.action_spaces = {uid: spaces.Discrete(SIZES[kind][1]) for uid, kind in kinds.items()}
        self.shared_observation_spaces = dict.fromkeys(kinds, box(STATE))
        self.num_envs, self.device = E, torch.device("cpu")

    @property
    def learners(self) -> list[str]:
        return [uid for uid in self.possible_agents if uid not in (*self.scripted, *self.frozen)]


def alike(n: int = 3, **others: tuple[str, ...]) -> QTeam:
    return QTeam({f"a{i}": "small" for i in range(n)}, **others)


def two_kinds(**others: tuple[str, ...]) -> QTeam:
    """Kinds that alternate."""
    return QTeam({"a0": "small", "b0": "big", "a1": "small", "b1": "big"}, **others)


Models = dict[str, dict[str, Any]]
Maker = Callable[[QTeam], Models]


def rule(states: Tensor, action_masks: Tensor | None) -> Tensor:
    """Of what is allowed, the last."""
    if action_masks is None:
        return torch.zeros(len(states), 1, dtype=torch.int64)
    return (action_masks.cumsum(dim=1) * action_masks).argmax(dim=1, keepdim=True)


class ByHand(QMixin, Model):
    """Looks at shapes: nothing is known about it."""

    uses_agent_id = True

    def __init__(self, observation_space: Any, action_space: Any, ids: int) -> None:
        Model.__init__(self, observation_space, action_space)
        QMixin.__init__(self)
        self.first = nn.Linear(self.num_observations, 6)
        self.identity = nn.Linear(ids, 6, bias=False)
        self.last = nn.Linear(6, self.num_actions)

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        x = self.first(inputs["states"]) + self.identity(inputs["agent_id"])
        if x.shape[0] > 0:
            x = torch.tanh(x).view(x.shape[0], 2, 3).flip(1).reshape(-1, 6)
        return self.last(x), {}


class RememberingQ(QMixin, Remembering):
    """A recurrent one: see ``Remembering``."""

    def __init__(self, seen: Any, actions: Any, memory: Any, ids: int = 0) -> None:
        Remembering.__init__(self, seen, actions, memory, Model(None, actions).num_actions, ids)
        QMixin.__init__(self)

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        return self.remember(inputs)


def networks(share: bool, **kwargs: Any) -> Maker:
    """The library's."""

    def make(team: QTeam) -> Models:
        return build_models(team, "iql", **{"hidden": (8, 7), "activation": "tanh", "shared": share, **kwargs})

    return make


distinct, shared = networks(False), networks(True)


def remembering(kind: str, share: bool, length: int = 3, layers: int = 1, ids: bool = False) -> Maker:
    """Recurrent ones, of the library's layers or by hand: see ``Memory``."""

    def make(team: QTeam) -> Models:
        kept: dict[Any, Model] = {}
        models: Models = {}
        for uid in team.possible_agents:
            key = team.kinds[uid] if share else uid
            if key not in kept:
                seen, actions = team.observation_spaces[uid], team.action_spaces[uid]
                kept[key] = RememberingQ(seen, actions, (kind, layers, length), len(team.kinds) if ids else 0)
            models[uid] = {"q": kept[key]}
        return models

    return make


def by_hand(team: QTeam) -> Models:
    n = len(team.possible_agents)
    return {
        uid: {"q": ByHand(team.observation_spaces[uid], team.action_spaces[uid], n)} for uid in team.possible_agents
    }


def pairs(team: QTeam) -> Models:
    """The first and the third agent share, and so do the second and the fourth."""
    models, a = networks(False, agent_id=True)(team), team.possible_agents
    models[a[2]], models[a[3]] = models[a[0]], models[a[1]]
    return models


def mixture(team: QTeam) -> Models:
    """The first and the last agent share, the others have their own."""
    models, a = distinct(team), team.possible_agents
    models[a[-1]] = models[a[0]]
    return models


def unequal(team: QTeam) -> Models:
    """Architectures that don't stack."""
    makers = [networks(False, hidden=(8,) if i % 2 else (6, 5)) for i in range(len(team.possible_agents))]
    return {uid: make(team)[uid] for uid, make in zip(team.possible_agents, makers, strict=True)}


# ---- mixers ------------------------------------------------------------------------------------------------------------


def qmix(layers: int = 2) -> Callable[[int, int], Any]:
    return lambda size, agents: QMIXMixer(size, agents, embed=4, hypernet_layers=layers, hypernet_hidden=6)


def attention(size: int, agents: int) -> Any:
    return AttentionMixer(size, agents, embed=3, heads=2, hidden=5)


def crossing(size: int, agents: int) -> Any:
    return Crossing(box(size), agents)


def with_mixer(team: QTeam, models: Models, sees: str, make: Callable[[int, int], Any]) -> Models:
    """The same networks, with a mixer for those that learn."""
    everything = sum(space.shape[0] for space in team.observation_spaces.values())
    size = {"state": STATE, "observations": everything, "both": STATE + everything}[sees]
    mixer = make(size, len(team.possible_agents))
    return {uid: {**roles, "mixer": mixer} if uid in team.learners else roles for uid, roles in models.items()}

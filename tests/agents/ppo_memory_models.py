"""Recurrent models for comparing the library with the slow reference: written by hand, and of the library's layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.models.base import Model
from coterie.models.mixins import CategoricalMixin, DeterministicMixin, GaussianMixin, MultiCategoricalMixin
from coterie.models.recurrent import GRU, LSTM
from tests.agents.ppo_teams import STATE, Models, Team, box, built

HIDDEN = 5
Maker = Callable[[Team, str], Models]


class Memory(nn.Module):
    """A layer, and cells on top of each other, one step at a time.

    :param kind: "gru" or "lstm" for torch's cells, "library gru" or "library lstm" for the library's layers
    """

    def __init__(self, inputs: int, kind: str, layers: int, length: int) -> None:
        super().__init__()
        self.kind, self.layers, self.length = kind, layers, length
        self.first = nn.Linear(inputs, HIDDEN)
        if kind.startswith("library"):
            self.rnn = (GRU if kind == "library gru" else LSTM)(HIDDEN, HIDDEN, layers)
        else:
            cell = nn.GRUCell if kind == "gru" else nn.LSTMCell
            self.cells = nn.ModuleList([cell(HIDDEN, HIDDEN) for _ in range(layers)])

    def specification(self) -> dict[str, Any]:
        states = 2 if self.kind.endswith("lstm") else 1
        rnn: dict[str, Any] = {"sizes": [(self.layers, HIDDEN)] * states, "sequence_length": self.length}
        if self.kind.startswith("library"):
            rnn["whole_sequences"] = True
        elif self.layers > 1:
            rnn["sizes"] = [(self.layers, 99, HIDDEN)] * states  # the number of environments has no meaning
        return {"rnn": rnn}

    def forward(self, x: Tensor, inputs: Mapping[str, Any]) -> tuple[Tensor, list[Tensor]]:
        x = torch.tanh(self.first(x))
        if self.kind.startswith("library"):
            return self.rnn(x, inputs)
        before: Sequence[Tensor] = inputs["rnn"]
        after: list[list[Tensor]] = [[] for _ in before]
        for layer, cell in enumerate(self.cells):
            states = [state[layer] for state in before]
            new = (cell(x, states[0]),) if self.kind == "gru" else cell(x, tuple(states))
            for kept, state in zip(after, new, strict=True):
                kept.append(state)
            x = new[0]
        return x, [torch.stack(states) for states in after]


class Remembering(Model):
    """Base of the models below: a memory and a head.

    :param ids: number of agents of the team, for a one-hot that is appended to the input; 0 to leave it out
    """

    def __init__(self, seen: Any, actions: Any, memory: Sequence[Any], outputs: int, ids: int) -> None:
        Model.__init__(self, seen, actions)
        self.uses_agent_id = ids > 0
        self.memory = Memory(self.num_observations + ids, *memory)
        self.head = nn.Linear(HIDDEN, outputs)

    def get_specification(self) -> dict[str, Any]:
        return self.memory.specification()

    def remember(self, inputs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        x = inputs["states"]
        x = torch.cat([x, inputs["agent_id"]], dim=-1) if self.uses_agent_id else x
        features, states = self.memory(x, inputs)
        return self.head(features), {"rnn": states}


class RememberingChoice(CategoricalMixin, Remembering):
    def __init__(self, seen: Any, actions: Any, memory: Sequence[Any], ids: int = 0) -> None:
        Remembering.__init__(self, seen, actions, memory, Model(None, actions).num_actions, ids)
        CategoricalMixin.__init__(self)

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        return self.remember(inputs)


class RememberingChoices(MultiCategoricalMixin, Remembering):
    def __init__(self, seen: Any, actions: Any, memory: Sequence[Any], ids: int = 0) -> None:
        Remembering.__init__(self, seen, actions, memory, Model(None, actions).num_actions, ids)
        MultiCategoricalMixin.__init__(self)

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        return self.remember(inputs)


class RememberingGaussian(GaussianMixin, Remembering):
    def __init__(self, seen: Any, actions: Any, memory: Sequence[Any], ids: int = 0) -> None:
        Remembering.__init__(self, seen, actions, memory, Model(None, actions).num_actions, ids)
        GaussianMixin.__init__(self)
        self.log_std = nn.Parameter(torch.zeros(self.num_actions))

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        mean, memory = self.remember(inputs)
        return mean, self.log_std, memory


class RememberingValue(DeterministicMixin, Remembering):
    def __init__(self, seen: Any, actions: Any, memory: Sequence[Any], ids: int = 0) -> None:
        Remembering.__init__(self, seen, actions, memory, 1, ids)
        DeterministicMixin.__init__(self)

    def compute(self, inputs: Mapping[str, Any], role: str = "") -> tuple[Any, ...]:
        return self.remember(inputs)


POLICIES: dict[type, type[Model]] = {
    spaces.Box: RememberingGaussian, spaces.Discrete: RememberingChoice, spaces.MultiDiscrete: RememberingChoices,
}  # fmt: skip


def critic_width(team: Team, uid: str, kind: str) -> int:
    """Size of what a critic sees."""
    everyone = sum(space.shape[0] for space in team.observation_spaces.values())
    own, state = team.observation_spaces[uid].shape[0], STATE.shape[0]
    return {"own": own, "state": state, "observations": everyone, "agent": own + state, "both": state + everyone}[kind]


def seeing(kind: str, share: bool) -> Maker:
    """Feed-forward models whose critics see more than the state."""

    def make(team: Team, algorithm: str) -> Models:
        from coterie.models import Value

        models = built(team, algorithm, shared=share)
        critics: dict[Any, Model] = {}
        for i, (uid, roles) in enumerate(models.items()):
            width = critic_width(team, uid, kind)
            key = width if share else i
            if key not in critics:
                critics[key] = Value(box(width), team.action_spaces[uid], hidden=(8, 7))
            models[uid] = {"policy": roles["policy"], "value": critics[key]}
        return models

    return make


def remembering(
    policy: str | None = "gru",
    value: str | None = "gru",
    share: bool = False,
    length: int = 3,
    layers: int = 1,
    ids: bool = False,
    sees: str | None = None,
    shared_critic: bool = False,
) -> Maker:
    """Models of which some remember.

    :param policy: kind of the policies' memory, see :class:`Memory`; None for policies without
    :param value: likewise of the critics'
    :param share: one model of each kind for all agents of equal spaces
    :param length: of the sequences in which they learn
    :param layers: cells on top of each other
    :param ids: whether shared models tell agents apart by a one-hot
    :param sees: what critics see: "own", or a ``critic_input``; by default "state" with MAPPO, "own" with IPPO
    :param shared_critic: one critic for all agents, whatever their policies
    """

    def make(team: Team, algorithm: str) -> Models:
        kind = sees or ("state" if algorithm == "mappo" else "own")
        plain = seeing(kind, share)(team, algorithm)
        number = len(team.possible_agents) if ids else 0
        kept: dict[Any, Model] = {}
        models: Models = {}
        for uid in team.possible_agents:
            observations, actions = team.observation_spaces[uid], team.action_spaces[uid]
            seen = box(critic_width(team, uid, kind))
            roles = dict(plain[uid])
            if policy is not None:
                maker = POLICIES[type(actions)]
                key = ("policy", team.kinds[uid] if share else uid)
                if key not in kept:
                    kept[key] = maker(observations, actions, (policy, layers, length), number)
                roles["policy"] = kept[key]
            if value is not None:
                key = ("value", seen.shape if share or shared_critic else uid)
                if key not in kept:
                    ids_of_critic = 0 if kind in ("state", "observations", "both") else number
                    kept[key] = RememberingValue(seen, actions, (value, layers, length), ids_of_critic)
                roles["value"] = kept[key]
            models[uid] = roles
        return models

    return make

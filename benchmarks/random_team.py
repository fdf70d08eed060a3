"""A team on random data, for benchmarks that need a filled rollout and no environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from coterie.agent_tensors import AgentTensors
from coterie.agents import IPPO, IQL, MAPPO, QMIX, VDN
from coterie.agents.ppo import MultiAgentPPO
from coterie.agents.recording import RecordingAgent
from coterie.agents.value_learning import ValueLearner
from coterie.memories import RandomMemory, ReplayMemory
from coterie.models import build_models

ALGORITHMS: dict[str, type[MultiAgentPPO]] = {"mappo": MAPPO, "ippo": IPPO}
VALUE_ALGORITHMS: dict[str, type[ValueLearner]] = {"qmix": QMIX, "vdn": VDN, "iql": IQL}

#: agents that write nothing to disk
QUIET = {"write_interval": 0, "checkpoint_interval": 0}


def box(width: int) -> spaces.Box:
    """An unbounded observation space."""
    return spaces.Box(-np.inf, np.inf, (width,), np.float32)


@dataclass
class RandomTeam:
    """Spaces of ``agents`` equal agents, and random transitions in them."""

    agents: int = 3
    num_envs: int = 64
    observation: int = 18
    state: int = 54
    actions: int = 5
    episode: int = 25
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        names = [f"agent_{i}" for i in range(self.agents)]
        self.possible_agents = names
        self.observation_spaces: dict[str, gymnasium.Space] = {uid: box(self.observation) for uid in names}
        self.action_spaces: dict[str, gymnasium.Space] = {uid: spaces.Discrete(self.actions) for uid in names}
        self.shared_observation_spaces: dict[str, gymnasium.Space] = {uid: box(self.state) for uid in names}

    def team(self, algorithm: str, *, shared: bool, hidden: int, rollouts: int, **cfg: Any) -> MultiAgentPPO:
        """A team of two-layer perceptrons (without agent ids) that records nothing but rollouts."""
        models = build_models(self, algorithm, shared=shared, hidden=(hidden, hidden), agent_id=False)
        memories = {uid: RandomMemory(rollouts, self.num_envs, self.device) for uid in self.possible_agents}
        return self._begun(ALGORITHMS[algorithm], models, memories, {"rollouts": rollouts, **cfg})

    def value_team(
        self,
        algorithm: str,
        memory: type[ReplayMemory],
        rows: int,
        *,
        shared: bool = True,
        hidden: tuple[int, ...] = (64, 64),
        rnn: str | None = None,
        **cfg: Any,
    ) -> ValueLearner:
        """A team that learns action values from memories of ``rows`` rows (without agent ids)."""
        models = build_models(self, algorithm, shared=shared, hidden=hidden, rnn=rnn, rnn_size=64, agent_id=False)
        memories = {uid: memory(rows, self.num_envs, self.device) for uid in self.possible_agents}
        return self._begun(VALUE_ALGORITHMS[algorithm], models, memories, cfg)

    def _begun(self, kind: Any, models: Any, memories: Any, cfg: dict[str, Any]) -> Any:
        """A team that is about to train, and writes nothing."""
        team = kind(
            self.possible_agents,
            models,
            memories,
            self.observation_spaces,
            self.action_spaces,
            self.device,
            {"experiment": QUIET, **cfg},
            self.shared_observation_spaces,
        )
        team.init()
        team.set_running_mode("train")
        return team

    def observations(self) -> AgentTensors:
        """Random observations of one moment."""
        return AgentTensors.single(self.possible_agents, torch.randn(self.num_envs, self.agents, self.observation))

    def fill(self, team: RecordingAgent, steps: int, ends: Tensor | None = None, deaths: Tensor | None = None) -> None:
        """Let ``team`` act and record ``steps`` transitions, without updates.

        :param ends: bool ``[steps, E]``, where episodes end; all of them every ``episode`` steps by default
        :param deaths: bool ``[steps, E]``, which of these ends are terminations; none by default
        """
        states, shared = self.observations(), torch.randn(self.num_envs, self.state)
        nowhere = torch.zeros(steps, self.num_envs, dtype=torch.bool)
        if ends is None:
            ends = nowhere | (torch.arange(1, steps + 1) % self.episode == 0).unsqueeze(1)
        deaths = nowhere if deaths is None else ends & deaths
        shape = self.num_envs, self.agents, 1
        for t in range(steps):
            actions, _, _ = team.act(states, t, steps)
            following, shared_next = self.observations(), torch.randn(self.num_envs, self.state)
            rewards = torch.randn(shape)
            infos: dict[str, Any] = {"shared_states": shared, "shared_next_states": shared_next}
            if bool(ends[t].any()):
                infos.update(final_states=self.observations(), final_shared_states=torch.randn_like(shared))
            flags = [flag[t].view(-1, 1, 1).expand(shape) for flag in (deaths, ends & ~deaths)]
            columns = [AgentTensors.single(self.possible_agents, x) for x in (rewards, *flags)]
            team.record_transition(states, actions, columns[0], following, columns[1], columns[2], infos, t, steps)
            states, shared = following, shared_next

"""A team on random data, for benchmarks that need a filled rollout and no environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from coterie.agent_tensors import AgentTensors
from coterie.agents import IPPO, MAPPO
from coterie.agents.ppo import MultiAgentPPO
from coterie.memories import RandomMemory
from coterie.models import build_models

ALGORITHMS: dict[str, type[MultiAgentPPO]] = {"mappo": MAPPO, "ippo": IPPO}


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
        quiet = {"write_interval": 0, "checkpoint_interval": 0}
        team = ALGORITHMS[algorithm](
            self.possible_agents,
            models,
            memories,
            self.observation_spaces,
            self.action_spaces,
            self.device,
            {"rollouts": rollouts, "experiment": quiet, **cfg},
            self.shared_observation_spaces,
        )
        team.init()
        team.set_running_mode("train")
        return team

    def observations(self) -> AgentTensors:
        """Random observations of one moment."""
        return AgentTensors.single(self.possible_agents, torch.randn(self.num_envs, self.agents, self.observation))

    def fill(self, team: MultiAgentPPO, steps: int) -> None:
        """Let ``team`` act and record ``steps`` transitions, without updates."""
        states, shared = self.observations(), torch.randn(self.num_envs, self.state)
        flags = torch.zeros(self.num_envs, self.agents, 1, dtype=torch.bool)
        for t in range(steps):
            actions, _, _ = team.act(states, t, steps)
            following, shared_next = self.observations(), torch.randn(self.num_envs, self.state)
            rewards = torch.randn(self.num_envs, self.agents, 1)
            infos: dict[str, Any] = {"shared_states": shared, "shared_next_states": shared_next}
            ended = (t + 1) % self.episode == 0
            if ended:
                infos.update(final_states=self.observations(), final_shared_states=torch.randn_like(shared))
            columns = [AgentTensors.single(self.possible_agents, x) for x in (rewards, flags, flags | ended)]
            team.record_transition(states, actions, columns[0], following, columns[1], columns[2], infos, t, steps)
            states, shared = following, shared_next

"""A single-agent Gymnasium environment seen as a team of one."""

from __future__ import annotations

from typing import Any

import gymnasium

__all__ = ["SOLE_AGENT", "OneAgentTeam"]

#: name of the only agent
SOLE_AGENT = "agent_0"


class OneAgentTeam:
    """Steps a ``gymnasium.Env`` the way a PettingZoo parallel environment is stepped.

    It has no shared state, so the agent's observation stands in for one.

    :param env: the environment
    """

    def __init__(self, env: gymnasium.Env) -> None:
        self.env = env
        self.possible_agents = [SOLE_AGENT]
        self.agents: list[str] = []

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.env})"

    def observation_space(self, agent: str) -> gymnasium.Space:
        """Observation space of the agent."""
        return self.env.observation_space

    def action_space(self, agent: str) -> gymnasium.Space:
        """Action space of the agent."""
        return self.env.action_space

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode and return ``(observations, infos)``."""
        observation, info = self.env.reset(seed=seed)
        self.agents = self.possible_agents[:]
        return {SOLE_AGENT: observation}, {SOLE_AGENT: info}

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """Step and return observations, rewards, terminations, truncations and infos."""
        observation, reward, terminated, truncated, info = self.env.step(actions[SOLE_AGENT])
        if terminated or truncated:
            self.agents = []
        results = (observation, reward, terminated, truncated, info)
        return tuple({SOLE_AGENT: result} for result in results)

    def render(self) -> Any:
        """Return what the environment renders."""
        return self.env.render()

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

"""What environments that change another one have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from coterie.envs.base import MultiAgentEnv

__all__ = ["EnvWrapper"]


class EnvWrapper(MultiAgentEnv):
    """An environment of which something is changed. Whatever a subclass leaves alone is passed on as it is.

    :param env: the environment that is changed

    :raises TypeError: it is no :class:`MultiAgentEnv`
    """

    def __init__(self, env: MultiAgentEnv) -> None:
        if not isinstance(env, MultiAgentEnv):
            raise TypeError(f"env: expected a MultiAgentEnv, got {type(env).__name__}; use coterie.wrap_env first")
        #: the environment that is changed
        self.env = env
        self.possible_agents = env.possible_agents
        self.num_envs = env.num_envs
        self.device = env.device
        self.observation_spaces = env.observation_spaces
        self.action_spaces = env.action_spaces
        self.shared_observation_spaces = env.shared_observation_spaces
        self.has_own_state = env.has_own_state

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.env!r})"

    @property
    def agents(self) -> Sequence[str]:
        """Names of the agents that take part now."""
        return self.env.agents

    def reset(self) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        return self.env.reset()

    def step(
        self, actions: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor], dict[str, Any]]:
        return self.env.step(actions)

    def state(self) -> Tensor:
        return self.env.state()

    def close(self) -> None:
        self.env.close()

    def render(self, **kwargs: Any) -> Any:
        """Return the renderer's output; arguments go to the environment."""
        return self.env.render(**kwargs)

    def get_state(self) -> dict[str, Any]:
        return self.env.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.env.set_state(state)

"""The environment contract: vectorised, torch, and auto-resetting within the step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import torch
from torch import Tensor

__all__ = ["EnvError", "MultiAgentEnv"]


class EnvError(RuntimeError):
    """An environment broke its contract, or raised: the message names the agent, the sub-environment and the value."""


class MultiAgentEnv(ABC):
    """What agents and trainers expect of an environment of E copies stepped together.

    One step, in the order in which things happen::

        states, infos = env.reset()                     # states[uid]: [E, obs]
        shared = env.state()                            # [E, state], describes the same moment as `states`
        next_states, rewards, terminated, truncated, infos = env.step(actions)
        shared = env.state()                            # describes the same moment as `next_states`

    - ``states[uid]`` and ``next_states[uid]`` are float tensors ``[E, obs]`` (flat), ``rewards[uid]`` float ``[E, 1]``,
      ``terminated[uid]`` and ``truncated[uid]`` bool ``[E, 1]``. ``actions[uid]`` is float ``[E, n]`` for a Box and int64
      for the others: ``[E, 1]`` for a Discrete, ``[E, k]`` for a MultiDiscrete of k entries, both counted from 0, and
      ``[E, n]`` of zeros and ones for a MultiBinary. All live on :attr:`device`. Returned mappings may be
      ``AgentTensors``. Observations of other kinds than a flat Box are flattened (:mod:`coterie.spaces`).
    - A copy whose episode ended has been reset when ``step`` returns: ``next_states`` (and ``state()``) show the first
      moment of its next episode. The true last observations are in ``infos["final_states"]`` (mapping uid -> ``[E, obs]``)
      and the true last shared state in ``infos["final_shared_states"]`` (``[E, state]``). Both keys are there
      whenever at least one copy ended in this step; only the rows of copies that ended are meaningful.
    - ``terminated`` means the task ended and the future is worth nothing; ``truncated`` means that the clock ran out.
      An episode is over, and the copy resets, when every agent is ``terminated | truncated``.
    - Infos describe the states they come with, ``next_states`` and not those that were acted on:

      - ``infos["action_masks"][uid]`` bool ``[E, flat_size(action_space)]``, True where allowed, for Discrete and
        MultiDiscrete actions (one dimension after the other). An agent that is to act has a choice in each dimension;
        for one that is not, all is True. Agents without masks may be missing from the mapping.
      - ``infos["active_masks"][uid]`` bool ``[E, 1]``, True where the agent is to act on these states. What other
        agents are given as actions has no effect.
      - ``infos["waiting_masks"][uid]`` bool ``[E, 1]``, True where the agent is in the game but not to act now, as
        in games that are played in turn. What it earns while it waits belongs to its last action.

      Without the key all is allowed, all are active, and nobody waits. An agent that is neither active nor waiting is
      absent: it has died, or not yet arrived. What it observes, does and earns means nothing, with two exceptions: the
      step in which it leaves counts, and shows in ``next_states`` what it observed last. An absent agent is
      ``terminated``, unless it arrives in this step.
    - Beside ``final_states``, infos may have ``infos["final_action_masks"]`` and ``infos["final_active_masks"]``: in the
      form of the masks above, what would be allowed in the last states and who would be to act on them, had the clock not
      run out. Only rows of copies that ended are meaningful, and in these only agents that are ``truncated`` and not
      ``terminated``: for others there is nothing to act on, so that ``final_active_masks`` is False and all is allowed. Those
      who are truncated and not active wait. Without the keys, whoever is truncated is to act, and all is allowed.
    - Returned tensors are never written to again by the environment, nor by whoever receives them.
    """

    #: names of all agents, in the order in which tensors are stacked
    possible_agents: list[str]
    #: number of copies E
    num_envs: int
    #: where every returned tensor lives
    device: torch.device
    #: observation space of one agent in one copy
    observation_spaces: Mapping[str, gymnasium.Space]
    #: action space of one agent in one copy
    action_spaces: Mapping[str, gymnasium.Space]
    #: space of the state that a centralised critic sees, by agent (the same for all of a team)
    shared_observation_spaces: Mapping[str, gymnasium.Space]
    #: whether :meth:`state` is the environment's own; elsewhere it is the observations of all agents side by side, in
    #: the order of ``possible_agents``, with zeros for those that are absent (in the last state of an episode also for those
    #: that were terminated as others were truncated)
    has_own_state: bool = True

    @abstractmethod
    def reset(self) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        """Start a new episode in every copy and return ``(states, infos)``."""

    @abstractmethod
    def step(
        self, actions: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor], dict[str, Any]]:
        """Advance every copy by one step and return ``(next_states, rewards, terminated, truncated, infos)``."""

    @abstractmethod
    def state(self) -> Tensor:
        """Return the shared state ``[E, state]`` of the present moment."""

    def close(self) -> None:  # noqa: B027 (most environments hold nothing that needs closing)
        """Release what the environment holds; calling it twice does no harm."""

    def render(self) -> Any:
        """Return the renderer's output, None where the environment has no renderer."""
        return None

    def get_state(self) -> dict[str, Any]:
        """Return everything that decides the future (a copy: tensors, generators, counters), for :meth:`set_state`."""
        raise NotImplementedError(f"{type(self).__name__} cannot hand over its state")

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`get_state` returned."""
        raise NotImplementedError(f"{type(self).__name__} cannot take a state")

    @property
    def agents(self) -> Sequence[str]:
        """Names of the agents that take part now."""
        return self.possible_agents

    @property
    def num_agents(self) -> int:
        """Number of agents that take part now."""
        return len(self.agents)

    @property
    def max_num_agents(self) -> int:
        """Number of agents that may ever take part."""
        return len(self.possible_agents)

    @property
    def state_spaces(self) -> Mapping[str, gymnasium.Space]:
        """Another name of :attr:`shared_observation_spaces`."""
        return self.shared_observation_spaces

    def observation_space(self, agent: str) -> gymnasium.Space:
        """Observation space of ``agent``."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gymnasium.Space:
        """Action space of ``agent``."""
        return self.action_spaces[agent]

    def shared_observation_space(self, agent: str) -> gymnasium.Space:
        """Space of the shared state that the critic of ``agent`` sees."""
        return self.shared_observation_spaces[agent]

    state_space = shared_observation_space
